"""Carries prompts from command to committed transfer: blocks, stored KV, chunks, push.

Each job is one task that waits for what it needs; the chunks themselves run in the replica's
step loop. Whatever ends a job, it gives back its blocks and its transfer, and reports a failure
unless the router asked for the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from eastwest.blocks import BlockHash, block_hashes, blocks_for, hash_seed, reusable_blocks
from eastwest.clock import Clock, ns
from eastwest.config import KVConfig, PoolConfig
from eastwest.errors import (
    DeadlineExceeded,
    Draining,
    EastWestError,
    InternalError,
    InvalidArgument,
    LeaseExpired,
    Overloaded,
    Phase,
)
from eastwest.messages import Event, Failed, ModelInfo, Prefill, Prefilled, StepBudget, Ticket
from eastwest.ports import BlockSource, BlockStore, Lenders, ReplicaKV, StepRow
from eastwest.stopping import StopRule
from kv_transfer.group_push import GroupSender
from kv_transfer.ledger import Owner, OwnerKind
from prefill_pool.budget import PromptBudget
from prefill_pool.job import Job, JobState, LocalReservations, Target
from prefill_pool.loading import Loading
from prefill_pool.scheduler import Chunk, PromptScheduler
from runtime.holdings import Holdings
from runtime.intake import Intake
from runtime.noted_store import NotedStore
from runtime.step_loop import Stepping, StepResult
from runtime.work_check import check_work

log = logging.getLogger(__name__)

_PHASES = {
    JobState.PLACING: Phase.QUEUE,
    JobState.LOADING: Phase.QUEUE,
    JobState.COMPUTING: Phase.PREFILL,
    JobState.PUSHING: Phase.TRANSFER,
    JobState.ENDED: Phase.TRANSFER,
}


class PrefillWorker:
    """The prefill side of a replica. `emit` puts an event on a router's stream."""

    def __init__(
        self,
        *,
        model: ModelInfo,
        kv: ReplicaKV,
        holdings: Holdings,
        loop: Stepping,
        sender: GroupSender,
        store: BlockStore | None,
        lenders: Lenders,
        local: LocalReservations,
        is_self: Callable[[Ticket], bool],
        emit: Callable[[str, Event], None],
        pool: PoolConfig,
        kv_config: KVConfig,
        clock: Clock,
    ) -> None:
        self._model = model
        self._kv = kv
        self._holdings = holdings
        self._loop = loop
        self._sender = sender
        self._local = local
        self._is_self = is_self
        self._emit = emit
        self._pool = pool
        self._clock = clock
        self._scheduler = PromptScheduler(pool.step_tokens)
        self._budget = PromptBudget(pool.step_tokens)
        self._jobs: dict[str, Job] = {}
        self._intake = Intake(
            kv=kv,
            holdings=holdings,
            store=None,
            lease_ns=ns(kv_config.lease_s),
            clock=clock,
        )
        self._stored = None if store is None else NotedStore(store, holdings)
        self._lenders = lenders
        self._planned: list[Chunk] = []

    # Commands.

    def prefill(self, router_id: str, command: Prefill) -> None:
        """Begin a job; its outcome is Prefilled, then silence, or Failed."""
        try:
            job = self._admit(router_id, command)
        except EastWestError as error:
            self._emit(router_id, Failed.of(command.request_id, error, Phase.QUEUE))
            return
        self._jobs[job.request_id] = job
        job.task = asyncio.create_task(self._run(job), name=f"prefill {job.request_id}")
        job.task.add_done_callback(lambda _: self._ended(job))

    def abort(self, request_id: str) -> None:
        """End a job without an answer. Idempotent."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._cancel(job)

    def spend(self, router_id: str, command: StepBudget) -> None:
        """What a router allows prompts from the next step on."""
        self._budget.allow(router_id, command.prompt_tokens)

    def router_gone(self, router_id: str) -> None:
        """The router's stream is gone: end what it owned."""
        self._budget.forget(router_id)
        for job in [j for j in self._jobs.values() if j.router_id == router_id]:
            self.abort(job.request_id)

    def tick(self, now_ns: int) -> None:
        """End jobs whose deadline has passed."""
        for job in list(self._jobs.values()):
            if now_ns >= job.deadline_ns and not job.ending:
                job.ending = True
                phase = _PHASES[job.state]
                self._report(job, DeadlineExceeded(f"the deadline passed in phase {phase}"))
                self._cancel(job)

    @property
    def idle(self) -> bool:
        """See `runtime.leaving.Side`."""
        return not (self._jobs or self._holdings.retiring)

    def give_back(self, error: Draining) -> None:
        """End all jobs; their routers are told."""
        for job in self._jobs.values():
            if not job.ending:
                job.ending = True
                self._report(job, error)
                self._cancel(job)

    def owners(self) -> Collection[Owner]:
        """Owners of blocks that live, for the auditor."""
        return [j.owner for j in self._jobs.values() if j.blocks and not j.local]

    @property
    def waiting(self) -> int:
        """Jobs whose first token is not known yet."""
        return sum(j.state is not JobState.PUSHING for j in self._jobs.values())

    @property
    def waiting_tokens(self) -> int:
        return self._scheduler.waiting_tokens

    async def close(self) -> None:
        """End all jobs."""
        jobs = list(self._jobs.values())
        for job in jobs:
            self._cancel(job)
        await asyncio.gather(*(j.task for j in jobs if j.task), return_exceptions=True)
        await asyncio.gather(*(j.loader for j in jobs if j.loader), return_exceptions=True)

    # One job.

    def _admit(self, router_id: str, command: Prefill) -> Job:
        if len(self._jobs) >= self._pool.waiting_max:
            raise Overloaded(f"the prefill worker holds {len(self._jobs)} requests, its most")
        owner = Owner(OwnerKind.PREFILL, command.request_id)
        if command.request_id in self._jobs or owner in self._holdings.ledger:
            raise InvalidArgument(f"request {command.request_id!r} is being prefilled already")
        given = check_work(self._model, command)
        transfer_id = command.ticket.transfer_id
        if any(job.command.ticket.transfer_id == transfer_id for job in self._jobs.values()):
            raise InvalidArgument(f"transfer {transfer_id!r} is being filled by another request")
        now = self._clock.now_ns()
        self._intake.check_fits("the prompt needs", blocks_for(len(given), self._kv.block_tokens))
        seed = hash_seed(self._model.fingerprint, command.salt)
        return Job(
            command=command,
            given=command.given,
            router_id=router_id,
            owner=owner,
            stop_rule=StopRule.of(command.sampling, self._model.eos_ids, command.max_tokens),
            hashes=block_hashes(given, self._kv.block_tokens, seed),
            received_ns=now,
            deadline_ns=now + ns(command.timeout_s),
            first_token=asyncio.get_running_loop().create_future(),
            local=self._is_self(command.ticket),
        )

    async def _run(self, job: Job) -> None:
        done = False
        try:
            job.target = await self._place(job)
            await self._compute(job)
            await self._hand_over(job, job.target)
            done = True
        except EastWestError as error:
            self._report(job, error)
        except Exception as error:
            log.exception("prefill of %s failed", job.request_id)
            self._report(job, InternalError.caused_by("the prefill", error))
        finally:
            self._scheduler.remove(job.request_id)
            if job.target is not None and not done:
                await job.target.abort()

    async def _place(self, job: Job) -> Target:
        """Give the job blocks, with as much of its prefix in them as is in memory, and begin to
        load what is not."""
        ticket = job.command.ticket
        usable = reusable_blocks(len(job.given), self._kv.block_tokens)
        hashes = job.hashes[:usable]
        if job.local:
            job.blocks, present = self._local.room_of(job.command)
            self._begin_loading(job, hashes, min(usable, present))
            if job.loader is not None:
                self._local.lend(ticket, job.loader)
            return self._local.target(ticket)
        total = blocks_for(len(job.given), self._kv.block_tokens)
        taken = await self._intake.take(job.owner, job.router_id, hashes, total)
        job.blocks, job.published = taken.blocks, taken.shared
        self._begin_loading(job, hashes, taken.shared)
        target = self._sender.begin(ticket, job.blocks, deadline_ns=job.deadline_ns)
        target.ready(job.present_tokens)
        return target

    def _begin_loading(self, job: Job, hashes: Sequence[BlockHash], present: int) -> None:
        job.state = JobState.LOADING
        job.present_tokens = present * self._kv.block_tokens
        meet = job.command.meet_tokens
        source = self._source(job.command)
        if source is None or max(present, meet // self._kv.block_tokens) >= len(hashes):
            return
        job.loading = Loading(
            source,
            self._kv,
            self._clock,
            hashes=hashes,
            blocks=job.blocks,
            present=present,
            meet_tokens=meet,
            changed=lambda: self._loaded(job),
        )
        job.loader = asyncio.create_task(
            self._load(job, job.loading), name=f"load for {job.request_id}"
        )

    def _source(self, command: Prefill) -> BlockSource | None:
        """Where KV of what is given may be had."""
        if command.lender is not None:
            return self._lenders.blocks_of(command.lender)
        return self._stored

    async def _load(self, job: Job, loading: Loading) -> None:
        try:
            await loading.run()
        except Exception as error:  # noqa: BLE001 - the job ends with it
            if not job.first_token.done():
                job.first_token.set_exception(error)

    async def _compute(self, job: Job) -> None:
        loading = job.loading
        if loading is not None:
            await loading.begun.wait()
        job.state = JobState.COMPUTING
        ends = None if loading is None else loading.ends
        self._scheduler.add(job.request_id, len(job.given), job.present_tokens, ends)
        self._loaded(job)
        token = await job.first_token
        assert job.started_ns is not None
        loaded = 0 if loading is None else loading.tokens
        self._emit(
            job.router_id,
            Prefilled(
                request_id=job.request_id,
                token=token,
                finish=job.finish(token),
                queue_ns=job.started_ns - job.received_ns,
                prefill_ns=job.sampled_ns - job.started_ns,
                computed_tokens=len(job.given) - job.present_tokens - loaded,
                loaded_tokens=loaded,
                load_ns=0 if loading is None else loading.load_ns,
            ),
        )

    async def _hand_over(self, job: Job, target: Target) -> None:
        job.state = JobState.PUSHING
        token = job.first_token.result()
        target.ready(len(job.given))
        await target.finish(token, finished=job.finish(token) is not None)

    def _cancel(self, job: Job) -> None:
        # At once: a step that ends before the task has heard of it must not answer the job.
        self._scheduler.remove(job.request_id)
        if job.task is not None:
            job.task.cancel()

    def _ended(self, job: Job) -> None:
        """The job's task is over, or was cancelled before it began."""
        job.state = JobState.ENDED
        self._scheduler.remove(job.request_id)
        if job.loader is not None:
            job.loader.cancel()
        if job.blocks and not job.local:
            self._holdings.retire(job.owner)
            if job.loader is None or job.loader.done():
                self._release(job)
            else:
                job.loader.add_done_callback(lambda _: self._release(job))
        del self._jobs[job.request_id]

    def _release(self, job: Job) -> None:
        """Nothing is loaded any more."""
        self._loop.after_step(lambda: self._holdings.release(job.owner))

    def _publish(self, job: Job, full: int) -> None:
        if job.local:
            return
        full = min(full, len(job.hashes))
        fresh = slice(job.published, full)
        self._holdings.publish(job.blocks[fresh], job.hashes[fresh])
        job.published = max(job.published, full)

    def _loaded(self, job: Job) -> None:
        """More of it is loaded, or nothing more is."""
        if job.request_id in self._scheduler:
            before = self._scheduler.present(job.request_id)
            self._scheduler.meet(job.request_id)
            self._have_met(job, before)
            self._loop.wake()

    def _have_met(self, job: Job, before: int) -> None:
        """The scheduler may have passed over what was loaded behind `before`."""
        present = self._scheduler.present(job.request_id)
        if present > before:
            assert job.target is not None
            self._publish(job, present // self._kv.block_tokens)
            job.target.ready(present)

    def _report(self, job: Job, error: EastWestError) -> None:
        self._emit(job.router_id, Failed.of(job.request_id, error, _PHASES[job.state]))

    # Steps.

    def plan(self, beside: int) -> list[StepRow]:
        if not self._jobs:
            return []
        self._drop_orphans()
        self._planned = self._scheduler.plan(self._budget.tokens if beside else None)
        rows = []
        for chunk in self._planned:
            job = self._jobs[chunk.job_id]
            if job.started_ns is None:
                job.started_ns = self._clock.now_ns()
            rows.append(job.row(chunk))
        return rows

    def _drop_orphans(self) -> None:
        """Jobs that fill a reservation of this replica end with it."""
        for job in self._jobs.values():
            computing = job.local and job.request_id in self._scheduler
            if computing and not self._local.holds(job.command.ticket):
                self._scheduler.remove(job.request_id)
                error = LeaseExpired("the reservation of this replica is gone")
                job.first_token.set_exception(error)

    def apply(self, result: StepResult) -> None:
        for chunk, token in zip(self._planned, result.tokens, strict=True):
            if chunk.job_id not in self._scheduler:
                continue
            job = self._jobs[chunk.job_id]
            ended = self._scheduler.advance(chunk)
            self._publish(job, chunk.stop // self._kv.block_tokens)
            if not ended:
                self._have_met(job, chunk.stop)
            if token is not None:
                job.sampled_ns = result.ended_ns
                job.first_token.set_result(token)

    def failed(self, error: Exception) -> None:
        internal = InternalError.caused_by("an engine step", error)
        for chunk in self._planned:
            if chunk.job_id in self._scheduler:
                self._jobs[chunk.job_id].first_token.set_exception(internal)
                self._scheduler.remove(chunk.job_id)
