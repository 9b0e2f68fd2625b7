"""A rank in a process of its own, behind the link to its leader.

    listening ──Join──▶ loading ──▶ Joined: does commands ──stream ends──▶ closed, for good

Commands are begun in the order in which they come, on one event loop; those that take time (steps,
which run one after the other; the draining of a push; blocks that are read or written) are answered
when they are done, and do not hold up the others. The leader reuses blocks only after the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import grpc.aio

from eastwest.decoding import RefuseMalformed
from eastwest.errors import (
    EastWestError,
    Incompatible,
    InternalError,
    InvalidArgument,
    Overloaded,
    StaleEpoch,
    Unavailable,
)
from eastwest.layout import ParallelLayout
from eastwest.messages import PROTOCOL_VERSION
from eastwest.ports import StepRow
from eastwest.rpc import CONTROL_MESSAGE_BYTES, abort_with, server_options
from eastwest.v1 import rank_pb2 as wire
from eastwest.v1 import rank_pb2_grpc
from eastwest.wire import layout_from_wire, ticket_from_wire
from kv_transfer.ranks import Arrived, Missing
from runtime.rank import Rank
from runtime.rank_check import check_blocks, check_payloads, check_step
from runtime.rank_wire import (
    arrived_to_wire,
    failed_reply,
    missing_from_wire,
    missing_to_wire,
    opening_from_wire,
    reason_from_wire,
    step_from_wire,
    totals_to_wire,
)
from runtime.work_check import check_timeout

log = logging.getLogger(__name__)

ALIVE_S = 1.0
STOP_GRACE_S = 1.0
# A leader asks for a few things at a time, and reads the answers.
WAITING_MAX = 65_536

_Context = grpc.aio.ServicerContext[wire.RankCommand, wire.RankEvent]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank belongs, as its leader says. rendezvous: ``host:port`` for collectives."""

    worker_id: str
    epoch: int
    rank: int
    layout: ParallelLayout
    rendezvous: str


BuildRank = Callable[[Place], Awaitable[Rank]]


class RankServer(rank_pb2_grpc.RankServicer):
    """Serves one rank to one leader. `ended` is set when the rank has come to its end, whatever
    the reason, and its process should too.

    build: loads the model once the leader has said where the rank belongs. silence_s: a leader
    that says nothing for so long is gone.
    """

    def __init__(self, host: str, build: BuildRank, *, silence_s: float) -> None:
        self.ended = asyncio.Event()
        self._host = host
        self._build = build
        self._silence_s = silence_s
        self._server = grpc.aio.server(
            interceptors=[RefuseMalformed()], options=server_options(CONTROL_MESSAGE_BYTES)
        )
        self._taken = False

    async def start(self) -> str:
        """Listen for the leader; returns ``host:port``."""
        rank_pb2_grpc.add_RankServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        port = self._server.add_insecure_port(f"{self._host}:0")
        await self._server.start()
        return f"{self._host}:{port}"

    async def stop(self) -> None:
        """End the rank. Idempotent."""
        await self._server.stop(STOP_GRACE_S)
        self.ended.set()

    async def Run(  # noqa: N802 - named by the .proto
        self, request_iterator: AsyncIterator[wire.RankCommand], context: _Context
    ) -> None:
        """See rank.proto."""
        mine = False
        try:
            place = await self._join(request_iterator)
            mine = self._taken = True
            rank = await self._build(place)
            link = _Link(rank, context, self._silence_s)
            try:
                await link.run(self._host, request_iterator)
            finally:
                await _to_its_end(link.close())
        except EastWestError as error:
            log.warning("the link to the leader ends: %s", error.message)
            await abort_with(context, error)
        finally:
            if mine:
                self.ended.set()

    async def _join(self, commands: AsyncIterator[wire.RankCommand]) -> Place:
        command = await anext(aiter(commands), None)
        if command is None or command.WhichOneof("command") != "join":
            raise InvalidArgument("the first message to a rank must be join")
        join = command.join
        if join.protocol_version != PROTOCOL_VERSION:
            raise Incompatible(
                f"the leader speaks protocol version {join.protocol_version}; "
                f"allowed: {PROTOCOL_VERSION}"
            )
        if self._taken:
            raise StaleEpoch("the rank belongs to another leader, or did; allowed: one, once")
        layout = layout_from_wire(join.layout)
        if not 0 <= join.rank < layout.world_size or join.rank == layout.leader:
            raise InvalidArgument(
                f"rank is {join.rank}; allowed: 0 to {layout.world_size - 1}, but for the leader, "
                f"{layout.leader}"
            )
        return Place(join.worker_id, join.epoch, join.rank, layout, join.rendezvous)


class _Link:
    """One leader's stream, once the rank is loaded. Is the `ReceiverEvents` of the rank."""

    def __init__(self, rank: Rank, context: _Context, silence_s: float) -> None:
        self._rank = rank
        self._context = context
        self._silence_s = silence_s
        self._events: asyncio.Queue[wire.RankEvent] = asyncio.Queue()
        self._steps: asyncio.Queue[tuple[int, list[StepRow]]] = asyncio.Queue()
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self, host: str, commands: AsyncIterator[wire.RankCommand]) -> None:
        """Until the leader ends the stream; raises what broke it."""
        address = await self._rank.listen(host, self)
        engine, ways = self._rank.engine, self._rank.ways
        joined = wire.Joined(
            fingerprint=engine.model.fingerprint,
            num_blocks=engine.kv.num_blocks,
            block_tokens=engine.kv.block_tokens,
            memory={t.value: memory for t, memory in ways.memory.items()},
            host=ways.host,
            transports=ways.transports,
            address=address,
        )
        await self._context.write(wire.RankEvent(joined=joined))
        tasks = [
            asyncio.create_task(work)
            for work in (self._read(commands), self._write(), self._step(), self._say_alive())
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)
        await self._rank.close()

    # ReceiverEvents.

    def on_progress(self, rank: int, transfer_id: str) -> None:
        self._emit(wire.RankEvent(progress=wire.TransferProgress(transfer_id=transfer_id)))

    def on_arrived(self, rank: int, transfer_id: str, arrived: Arrived) -> None:
        self._emit(wire.RankEvent(arrived=arrived_to_wire(transfer_id, arrived)))

    def _emit(self, event: wire.RankEvent) -> None:
        self._events.put_nowait(event)

    async def _read(self, commands: AsyncIterator[wire.RankCommand]) -> None:
        messages = aiter(commands)
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    command = await anext(messages, None)
            except TimeoutError:
                raise Unavailable(f"the leader was silent for {self._silence_s} s") from None
            if command is None:
                return
            self._begin(command)

    async def _write(self) -> None:
        while True:
            await self._context.write(await self._events.get())

    async def _say_alive(self) -> None:
        while True:
            pairs = sum(self._rank.engine.expert_tokens)
            self._emit(wire.RankEvent(alive=wire.RankAlive(expert_tokens=pairs)))
            await asyncio.sleep(ALIVE_S)

    async def _step(self) -> None:
        """Run steps one after the other. One that fails ends the rank: its KV may be half done."""
        while True:
            call, step = await self._steps.get()
            try:
                await self._rank.step(step)
            except EastWestError:
                raise
            except Exception as error:
                log.exception("an engine step of %d rows failed", len(step))
                raise InternalError.caused_by("an engine step", error) from error
            self._emit(wire.RankEvent(reply=wire.Reply(call=call)))

    def _begin(self, command: wire.RankCommand) -> None:
        """Begin one command. What an answer is wanted for is answered by a task of its own."""
        call, rank = command.call, self._rank
        kv = rank.engine.kv
        waiting = self._steps.qsize() + self._events.qsize() + len(self._answers)
        if waiting > WAITING_MAX:
            raise Overloaded(f"{waiting} commands and answers wait; allowed: {WAITING_MAX}")
        match command.WhichOneof("command"):
            case "step":
                rows = step_from_wire(command.step)
                check_step(rows, rank.engine.model, kv, rank.engine.layout.dp)
                self._steps.put_nowait((call, rows))
            case "open":
                rank.receiving.open(opening_from_wire(command.open))
            case "close":
                close = command.close
                closing = rank.receiving.close(close.transfer_id, reason_from_wire(close.reason))
                self._answer(call, self._closed(closing))
            case "missing":
                self._answer(call, self._missing(command.missing.transfer_id))
            case "begin":
                begin = command.begin
                ticket = ticket_from_wire(begin.ticket)
                check_blocks(begin.blocks, kv)
                check_timeout(begin.timeout_s)
                rank.sending.begin(ticket, tuple(begin.blocks), begin.timeout_s)
            case "ready":
                rank.sending.ready(command.ready.transfer_id, command.ready.tokens)
            case "drain":
                self._answer(call, self._drain(command.drain.transfer_id))
            case "resend":
                self._answer(call, self._resend(command.resend))
            case "stop":
                self._answer(call, self._stop(command.stop.transfer_id))
            case "read":
                check_blocks(command.read.blocks, kv)
                self._answer(call, self._read_blocks(tuple(command.read.blocks)))
            case "write":
                check_blocks(command.write.blocks, kv)
                check_payloads(command.write.payloads, command.write.blocks, kv)
                self._answer(call, self._write_blocks(command.write))
            case "alive" if call:
                self._emit(wire.RankEvent(reply=wire.Reply(call=call)))
            case "alive":
                pass
            case _:
                raise InvalidArgument("a command to a rank is empty, or join came again")

    def _answer(self, call: int, work: Coroutine[Any, Any, wire.Reply]) -> None:
        task = asyncio.create_task(self._reply(call, work))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _reply(self, call: int, work: Coroutine[Any, Any, wire.Reply]) -> None:
        try:
            reply = await work
            reply.call = call
        except EastWestError as error:
            reply = failed_reply(call, error)
        except Exception as error:
            log.exception("a command of the leader failed")
            reply = failed_reply(call, InternalError.caused_by("a command to a rank", error))
        self._emit(wire.RankEvent(reply=reply))

    async def _closed(self, closing: Awaitable[None]) -> wire.Reply:
        await closing
        return wire.Reply()

    async def _missing(self, transfer_id: str) -> wire.Reply:
        regions = await self._rank.receiving.missing(transfer_id)
        return wire.Reply(missing=missing_to_wire(Missing(0, region) for region in regions))

    async def _drain(self, transfer_id: str) -> wire.Reply:
        return wire.Reply(totals=totals_to_wire(await self._rank.sending.drain(transfer_id)))

    async def _resend(self, command: wire.ResendPush) -> wire.Reply:
        missing = missing_from_wire(command.missing)
        stats = await self._rank.sending.resend(command.transfer_id, missing)
        return wire.Reply(totals=totals_to_wire(stats))

    async def _stop(self, transfer_id: str) -> wire.Reply:
        await self._rank.sending.stop(transfer_id)
        return wire.Reply()

    async def _read_blocks(self, blocks: tuple[int, ...]) -> wire.Reply:
        payloads = await self._rank.read(blocks)
        return wire.Reply(payloads=[bytes(payload) for payload in payloads])

    async def _write_blocks(self, command: wire.WriteBlocks) -> wire.Reply:
        await self._rank.write(tuple(command.blocks), command.payloads)
        return wire.Reply()


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, all of it also where the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
