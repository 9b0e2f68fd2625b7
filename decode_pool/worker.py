"""Carries requests from reservation to their last token, and rests what they leave behind.

A reservation is a lease on blocks: renewed by the frames that arrive for it and by the router's
heartbeat, it frees itself when both are gone. A commit turns it into a running sequence; the
blocks have exactly one owner throughout.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

from decode_pool.in_place import InPlaceReservations
from decode_pool.residency import Residency, RestState
from decode_pool.scheduler import DecodeScheduler, Running
from decode_pool.sequence import Arrival, Work, WorkState
from decode_pool.spiller import Spiller
from decode_pool.tickets import Endpoints, Tickets
from eastwest.blocks import block_hashes, hash_seed, reusable_blocks, sequence_blocks
from eastwest.clock import Clock, ns
from eastwest.config import KVConfig, PoolConfig, StoreConfig
from eastwest.errors import (
    DeadlineExceeded,
    Draining,
    EastWestError,
    InternalError,
    InvalidArgument,
    LeaseExpired,
    Overloaded,
    Phase,
    TransferFailed,
)
from eastwest.layout import ParallelLayout
from eastwest.messages import (
    Event,
    Failed,
    ModelInfo,
    Reserve,
    Reserved,
    SequenceOutput,
    Stepped,
    WorkerInfo,
)
from eastwest.ports import BlockStore, ReplicaKV, StepRow
from eastwest.stopping import StopRule
from eastwest.types import SampledToken
from kv_transfer.ledger import Owner, OwnerKind
from kv_transfer.ranks import ReceivingRank
from kv_transfer.transfers import TransferStats
from runtime.holdings import Holdings
from runtime.intake import Intake
from runtime.step_loop import Stepping, StepResult
from runtime.work_check import check_work

log = logging.getLogger(__name__)

_PHASES = {
    WorkState.RESERVING: Phase.RESERVATION,
    WorkState.RESERVED: Phase.TRANSFER,
    WorkState.RUNNING: Phase.DECODE,
    WorkState.ENDED: Phase.DECODE,
}


class DecodeWorker:
    """The decode side of a replica. `emit` puts an event on a router's stream; `info` is this
    incarnation as tickets name it."""

    def __init__(
        self,
        *,
        info: Callable[[], WorkerInfo],
        model: ModelInfo,
        layout: ParallelLayout,
        kv: ReplicaKV,
        ranks: Sequence[ReceivingRank],
        endpoints: Endpoints,
        settled: Callable[[], Awaitable[None]],
        holdings: Holdings,
        loop: Stepping,
        epoch: int,
        store: BlockStore | None,
        emit: Callable[[str, Event], None],
        pool: PoolConfig,
        kv_config: KVConfig,
        store_config: StoreConfig,
        clock: Clock,
    ) -> None:
        self._model = model
        self._settled = settled
        self._kv = kv
        self._holdings = holdings
        self._loop = loop
        self._tickets = Tickets(
            info, endpoints, ranks, layout, holdings, self, clock, epoch=epoch, config=kv_config
        )
        self.transfers = self._tickets.transfers
        self._emit = emit
        self._pool = pool
        self._kv_config = kv_config
        self._lease_ns = ns(kv_config.lease_s)
        self._clock = clock
        self._scheduler = DecodeScheduler(pool.running_max)
        self._works: dict[str, Work] = {}
        self._transfers: dict[str, Work] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._planned: list[Running] = []
        self.residency = Residency(ns(store_config.idle_s))
        self.spiller = Spiller(
            fingerprint=model.fingerprint, store=store, kv=kv, holdings=holdings,
            residency=self.residency, retry_s=store_config.retry_after_s, clock=clock,
        )  # fmt: skip
        self._intake = Intake(
            kv=kv,
            holdings=holdings,
            store=store,
            lease_ns=self._lease_ns,
            clock=clock,
            make_room=self.spiller.make_room,
        )
        self.in_place = InPlaceReservations(
            self._transfers.get, self._commit_in_place, self.on_aborted
        )
        self.transfer_bytes = 0

    # Commands.

    def reserve(self, router_id: str, command: Reserve) -> None:
        """Begin a request; answered by Reserved or Failed."""
        try:
            work = self._admit(router_id, command)
        except EastWestError as error:
            self._emit(router_id, Failed.of(command.request_id, error, Phase.RESERVATION))
            return
        self._works[work.request_id] = work
        if work.session is not None:
            self.residency.activate(work.session)
        work.task = asyncio.create_task(self._reserve(work), name=f"reserve {work.request_id}")

    def abort(self, request_id: str) -> None:
        """End a request without an answer. Idempotent."""
        work = self._works.get(request_id)
        if work is not None:
            self._drop(work)

    def router_gone(self, router_id: str) -> None:
        """The router's stream is gone: end what it owned."""
        for work in [w for w in self._works.values() if w.router_id == router_id]:
            self._drop(work)

    def tick(self, now_ns: int) -> None:
        """End requests whose deadline has passed."""
        for work in [w for w in self._works.values() if now_ns >= w.deadline_ns]:
            phase = _PHASES[work.state]
            error = DeadlineExceeded(f"the deadline passed in phase {phase}", phase=phase)
            self._end_with(work, error)

    def expire(self, request_id: str) -> None:
        """The lease of a reservation or sequence has run out."""
        work = self._works.get(request_id)
        if work is not None:
            error = LeaseExpired(f"no sign of life for {self._kv_config.lease_s} s")
            self._end_with(work, error)

    @property
    def idle(self) -> bool:
        """See `runtime.leaving.Side`."""
        return not (self._works or self._leaving or self._holdings.retiring)

    def give_back(self, error: Draining) -> None:
        """End all requests; their routers are told."""
        for work in list(self._works.values()):
            self._end_with(work, error)

    def owners(self) -> Collection[Owner]:
        """Owners of blocks that live, for the auditor."""
        works = [w.owner for w in self._works.values() if w.blocks]
        return [*works, *(r.owner for r in self.residency)]

    @property
    def running(self) -> int:
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Requests that do not decode yet."""
        return len(self._works) - self._scheduler.running

    async def close(self) -> None:
        """End all requests and release everything."""
        for work in list(self._works.values()):
            self._drop(work)
        await asyncio.gather(*self._leaving)
        for resting in list(self.residency):
            if resting.state is not RestState.SPILLING:
                self.residency.drop(resting)
                self._holdings.release(resting.owner)

    # Reservation.

    def _admit(self, router_id: str, command: Reserve) -> Work:
        if len(self._works) >= self._pool.waiting_max + self._pool.running_max:
            raise Overloaded(f"the decode worker holds {len(self._works)} requests, its most")
        if command.request_id in self._works or self._holdings.holds_for(command.request_id):
            raise InvalidArgument(f"request {command.request_id!r} is, or was, being served here")
        given = check_work(self._model, command)
        self._tickets.check(command.source)
        self._intake.check_fits("prompt and output need", self._blocks_needed(command))
        seed = hash_seed(self._model.fingerprint, command.salt)
        return Work(
            command=command,
            given=command.given,
            router_id=router_id,
            owner=Owner(OwnerKind.RESERVATION, command.request_id),
            stop_rule=StopRule.of(command.sampling, self._model.eos_ids, command.max_tokens),
            given_hashes=block_hashes(given, self._kv.block_tokens, seed),
            block_tokens=self._kv.block_tokens,
            seed=seed,
            deadline_ns=self._clock.now_ns() + ns(command.timeout_s),
        )

    async def _reserve(self, work: Work) -> None:
        try:
            await self._place(work)
            await self._open(work)
        except EastWestError as error:
            self._end_with(work, error)
        except Exception as error:
            log.exception("reservation of %s failed", work.request_id)
            self._end_with(work, InternalError.caused_by("the reservation", error))

    async def _place(self, work: Work) -> None:
        hashes = work.given_hashes[: reusable_blocks(len(work.given), self._kv.block_tokens)]
        total = self._blocks_needed(work.command)
        taken = await self._intake.take(work.owner, work.router_id, hashes, total)
        work.blocks, work.cached_blocks = taken.blocks, taken.shared
        if not work.command.leave_stored:
            work.loaded_blocks, work.load_ns = await self._intake.fill(taken, hashes)
        work.hashes = hashes[: taken.shared + work.loaded_blocks]

    def _blocks_needed(self, command: Reserve) -> int:
        return sequence_blocks(len(command.prompt), command.max_tokens, self._kv.block_tokens)

    async def _open(self, work: Work) -> None:
        if work.state is WorkState.ENDED:
            return  # dropped in the moment in which it got its blocks
        ticket = self._tickets.issue(work)
        self._transfers[ticket.transfer_id] = work
        work.transfer_id = ticket.transfer_id
        # Frames may come as soon as the ticket is out: every rank must know the transfer by then.
        await self._settled()
        work.state = WorkState.RESERVED
        cached = work.cached_blocks * self._kv.block_tokens
        loaded = work.loaded_blocks * self._kv.block_tokens
        self._emit(work.router_id, Reserved(work.request_id, ticket, cached, loaded, work.load_ns))

    # What the receiver tells (TransferOwner).

    def check_commit(self, transfer_id: str, first_token: SampledToken, finished: bool) -> None:
        work = self._transfers[transfer_id]
        work.check_first(first_token.token, finished, self._model.vocab_size)

    def on_committed(
        self, transfer_id: str, first_token: SampledToken, finished: bool, stats: TransferStats
    ) -> None:
        """Every byte of what is given is there: the reservation becomes a running sequence."""
        work = self._transfers[transfer_id]
        now = self._clock.now_ns()
        work.arrival = Arrival(now, stats.import_ns, stats.transfer_ns, stats.bytes)
        self.transfer_bytes += stats.bytes
        self._start(work, first_token, finished, now)

    def on_aborted(self, transfer_id: str, reason: str) -> None:
        """The sender gave up."""
        work = self._transfers.get(transfer_id)
        if work is not None:
            self._end_with(work, TransferFailed(f"the sender gave up: {reason}"))

    def _start(self, work: Work, first_token: SampledToken, finished: bool, now: int) -> None:
        self._publish(work)
        successor = Owner(OwnerKind.SEQUENCE, work.request_id)
        self._holdings.ledger.rename(work.owner, successor, lease_until_ns=now + self._lease_ns)
        work.owner = successor
        work.state = WorkState.RUNNING
        if finished:
            self._rest(work)
            return
        work.running = Running(
            request_id=work.request_id,
            prompt=work.command.prompt,
            output=[*work.command.output, first_token.token],
            blocks=work.blocks,
            params=work.command.sampling,
            stop_rule=work.stop_rule,
        )
        self._scheduler.add(work.running)
        self._loop.wake()

    def _commit_in_place(self, work: Work, first_token: SampledToken, finished: bool) -> None:
        now = self._clock.now_ns()
        work.arrival = Arrival(now, 0, 0, 0)
        self._start(work, first_token, finished, now)

    # Steps.

    def plan(self, beside: int) -> list[StepRow]:
        self._planned = self._scheduler.plan()
        return [sequence.row() for sequence in self._planned]

    def apply(self, result: StepResult) -> None:
        outputs: dict[str, list[SequenceOutput]] = {}
        works, block_tokens = self._works, self._kv.block_tokens
        for sequence, token in zip(self._planned, result.tokens, strict=True):
            work = works.get(sequence.request_id)
            if work is None or work.running is not sequence:
                continue
            assert token is not None
            finish = sequence.advance(token.token)
            if not sequence.computed % block_tokens:
                self._publish(work)
            first = None
            if sequence.steps == 1 and work.arrival is not None:
                first = work.arrival.first_step(result.started_ns, result.ended_ns)
            output = SequenceOutput(sequence.request_id, (token,), finish, first)
            if (batch := outputs.get(work.router_id)) is None:
                batch = outputs[work.router_id] = []
            batch.append(output)
            if finish is not None:
                self._rest(work)
        for router_id, batch in outputs.items():
            self._emit(router_id, Stepped(tuple(batch)))

    def failed(self, error: Exception) -> None:
        for sequence in self._planned:
            work = self._works.get(sequence.request_id)
            if work is not None:
                self._end_with(work, InternalError.caused_by("an engine step", error))

    # Endings.

    def _publish(self, work: Work) -> None:
        blocks, hashes = work.unpublished()
        self._holdings.publish(blocks, hashes)
        work.hashes.extend(hashes)

    def _rest(self, work: Work) -> None:
        """A sequence is done: its full blocks stay for the session, or as plain cache."""
        self._forget(work)
        if work.session is None:
            self._holdings.release(work.owner)
            return
        successor = Owner(OwnerKind.SESSION, work.request_id)
        kept = self._holdings.pass_on(work.owner, successor, len(work.hashes))
        now = self._clock.now_ns()
        former = self.residency.rest(work.session, successor, tuple(work.hashes), kept, now)
        if former is not None:
            self._holdings.release(former.owner)
        self.spiller.wake()

    def _forget(self, work: Work) -> None:
        del self._works[work.request_id]
        self._transfers.pop(work.transfer_id, None)
        work.state = WorkState.ENDED
        self._scheduler.remove(work.request_id)

    def _drop(self, work: Work) -> None:
        """End a request in mid-life; its blocks are free as soon as nothing writes to them."""
        self._forget(work)
        if work.session is not None:
            self.residency.deactivate(work.session, self._clock.now_ns())
            self.spiller.wake()
        self._holdings.retire(work.owner)
        closing = self.transfers.close(work.transfer_id)
        leaving = asyncio.create_task(self._leave(work, closing), name=f"end {work.request_id}")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, work: Work, closing: Awaitable[None]) -> None:
        """Give back the blocks of a request that has ended once nobody writes to them."""
        for task in filter(None, (work.task, work.writer)):
            task.cancel()
            await asyncio.wait([task])
        try:
            await closing
        except EastWestError as error:
            # A rank that does not answer: the replica is coming to its end.
            log.warning("transfer %s was not closed: %s", work.transfer_id, error.message)
            return
        if work.blocks:
            self._loop.after_step(lambda: self._holdings.release(work.owner))

    def _end_with(self, work: Work, error: EastWestError) -> None:
        phase = _PHASES[work.state]
        self._drop(work)
        self._emit(work.router_id, Failed.of(work.request_id, error, phase))
