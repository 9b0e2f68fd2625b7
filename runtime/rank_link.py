"""The leader's end of the link to a rank in another process.

A link is *joining* until the rank has loaded, *up* until it breaks or is ended. Whatever is asked
of a link that is broken fails with what broke it: the replica is coming to its end.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc.aio

from eastwest.errors import EastWestError, ErrorCode, Incompatible, Unavailable
from eastwest.messages import PROTOCOL_VERSION, Ticket, Transport
from eastwest.ports import Buffer, StepRow
from eastwest.rpc import CONTROL_MESSAGE_BYTES, channel_options, error_from_rpc
from eastwest.v1 import rank_pb2 as wire
from eastwest.v1 import rank_pb2_grpc
from eastwest.wire import layout_to_wire, ticket_to_wire, transport_from_wire
from kv_transfer.plan import Region
from kv_transfer.ranks import Missing, Opening, PushStats, ReceiverEvents
from runtime.rank_service import Place
from runtime.rank_wire import (
    arrived_from_wire,
    check_reply,
    missing_from_wire,
    missing_to_wire,
    opening_to_wire,
    step_to_wire,
    totals_from_wire,
)

ALIVE_S = 1.0


class RankLink:
    """To the rank at `address`. Is a `ReceivingRank` and a `SendingRank`.

    broken: called once, with the reason, when the link ends but by `end`. silence_s: a rank
    that says nothing for so long is gone.
    """

    def __init__(
        self, address: str, place: Place, *, silence_s: float, broken: Callable[[str], None]
    ) -> None:
        self.place = place
        self.expert_tokens = 0
        self.joined = wire.Joined()
        self._silence_s = silence_s
        self._broken = broken
        self._events: ReceiverEvents | None = None
        self._failure: EastWestError | None = None
        self._calls: dict[int, asyncio.Future[wire.Reply]] = {}
        self._numbers = itertools.count(1)
        self._commands: asyncio.Queue[wire.RankCommand] = asyncio.Queue()
        self._channel = grpc.aio.insecure_channel(
            address, options=channel_options(CONTROL_MESSAGE_BYTES)
        )
        stub = rank_pb2_grpc.RankStub(self._channel)  # type: ignore[no-untyped-call]
        self._stream: grpc.aio.StreamStreamCall[wire.RankCommand, wire.RankEvent] = stub.Run()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def transports(self) -> tuple[Transport, ...]:
        return tuple(transport_from_wire(name) for name in self.joined.transports)

    def place_of(self, transport: Transport) -> tuple[str, str]:
        """Address and memory, as in `RankEndpoint`, for KV by `transport`."""
        return self.joined.address, self.joined.memory.get(transport.value, "")

    async def join(self) -> None:
        """Tell the rank where it belongs and wait until it has loaded. Raises why it cannot."""
        place = self.place
        join = wire.Join(
            protocol_version=PROTOCOL_VERSION,
            worker_id=place.worker_id,
            epoch=place.epoch,
            rank=place.rank,
            layout=layout_to_wire(place.layout),
            rendezvous=place.rendezvous,
        )
        try:
            await self._stream.write(wire.RankCommand(join=join))
            event = await self._stream.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._status(error) from error
        if not isinstance(event, wire.RankEvent) or event.WhichOneof("event") != "joined":
            raise Incompatible(f"rank {place.rank} does not answer join with joined")
        self.joined = event.joined
        work = (self._read(), self._write(), self._say_alive())
        self._tasks = [asyncio.create_task(w, name=f"link to rank {place.rank}") for w in work]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    def listen(self, events: ReceiverEvents) -> None:
        self._events = events

    async def end(self) -> None:
        """End the rank. Idempotent."""
        self._fail(Unavailable(f"the link to rank {self.place.rank} has been ended"), wanted=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close(None)

    async def settled(self) -> None:
        """Until the rank has begun all that was asked of it before."""
        await self._call(wire.RankCommand(alive=wire.Alive()))

    # Steps and blocks.

    def step(self, rows: Sequence[StepRow]) -> Awaitable[Any]:
        """Begun at once, after all that was asked before; there when the rank has run it."""
        return self._call(wire.RankCommand(step=step_to_wire(rows)))

    async def read(self, blocks: Sequence[int]) -> list[Buffer]:
        reply = await self._call(wire.RankCommand(read=wire.ReadBlocks(blocks=blocks)))
        return list(reply.payloads)

    async def write(self, blocks: Sequence[int], payloads: Sequence[Buffer]) -> None:
        write = wire.WriteBlocks(blocks=blocks, payloads=[bytes(p) for p in payloads])
        await self._call(wire.RankCommand(write=write))

    # ReceivingRank.

    def open(self, opening: Opening) -> None:
        self._send(wire.RankCommand(open=opening_to_wire(opening)))

    def close(self, transfer_id: str, reason: ErrorCode | None) -> Awaitable[Any]:
        close = wire.CloseTransfer(transfer_id=transfer_id, reason=reason.value if reason else "")
        return self._call(wire.RankCommand(close=close))

    async def missing(self, transfer_id: str) -> list[Region]:
        missing = wire.MissingOf(transfer_id=transfer_id)
        reply = await self._call(wire.RankCommand(missing=missing))
        return [hole.region for hole in missing_from_wire(reply.missing)]

    # SendingRank.

    def begin(self, ticket: Ticket, blocks: Sequence[int], timeout_s: float) -> None:
        begin = wire.BeginPush(ticket=ticket_to_wire(ticket), blocks=blocks, timeout_s=timeout_s)
        self._send(wire.RankCommand(begin=begin))

    def ready(self, transfer_id: str, tokens: int) -> None:
        self._send(wire.RankCommand(ready=wire.PushReady(transfer_id=transfer_id, tokens=tokens)))

    async def drain(self, transfer_id: str) -> PushStats:
        drain = wire.DrainPush(transfer_id=transfer_id)
        return totals_from_wire((await self._call(wire.RankCommand(drain=drain))).totals)

    async def resend(self, transfer_id: str, missing: Sequence[Missing]) -> PushStats:
        resend = wire.ResendPush(transfer_id=transfer_id, missing=missing_to_wire(missing))
        return totals_from_wire((await self._call(wire.RankCommand(resend=resend))).totals)

    async def stop(self, transfer_id: str) -> None:
        await self._call(wire.RankCommand(stop=wire.StopPush(transfer_id=transfer_id)))

    # The stream.

    def _send(self, command: wire.RankCommand) -> None:
        if self._failure is None:
            self._commands.put_nowait(command)

    def _call(self, command: wire.RankCommand) -> asyncio.Future[wire.Reply]:
        """Send a command; its reply, or the error that it carries."""
        future: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        # A caller may have lost interest in an answer that turns out to be an error.
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        if self._failure is not None:
            future.set_exception(self._failure)
            return future
        command.call = next(self._numbers)
        self._calls[command.call] = future
        self._commands.put_nowait(command)
        return future

    async def _read(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    event = await self._stream.read()
            except TimeoutError:
                raise Unavailable(f"it was silent for {self._silence_s} s") from None
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from error
            if not isinstance(event, wire.RankEvent):
                raise Unavailable("it ended the stream")
            self._take(event)

    def _take(self, event: wire.RankEvent) -> None:
        match event.WhichOneof("event"):
            case "reply":
                future = self._calls.pop(event.reply.call, None)
                if future is not None and not future.done():
                    try:
                        check_reply(event.reply)
                        future.set_result(event.reply)
                    except EastWestError as error:
                        future.set_exception(error)
            case "progress" if self._events is not None:
                self._events.on_progress(self.place.rank, event.progress.transfer_id)
            case "arrived" if self._events is not None:
                arrived = event.arrived
                self._events.on_arrived(
                    self.place.rank, arrived.transfer_id, arrived_from_wire(arrived)
                )
            case "alive":
                self.expert_tokens = event.alive.expert_tokens

    async def _write(self) -> None:
        while True:
            command = await self._commands.get()
            try:
                await self._stream.write(command)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                raise await self._status(error) from error

    async def _say_alive(self) -> None:
        while True:
            self._send(wire.RankCommand(alive=wire.Alive()))
            await asyncio.sleep(ALIVE_S)

    async def _status(self, error: Exception) -> EastWestError:
        """What the rank ended the stream with."""
        if isinstance(error, grpc.aio.AioRpcError):
            return error_from_rpc(error)
        code, details = await self._stream.code(), await self._stream.details()
        return Unavailable(f"the link to rank {self.place.rank} ended: {code.name} {details}")

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            why = error.message if isinstance(error, EastWestError) else repr(error)
            self._fail(Unavailable(f"rank {self.place.rank} is lost: {why}"))

    def _fail(self, error: EastWestError, *, wanted: bool = False) -> None:
        if self._failure is not None:
            return
        self._failure = error
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(error)
        if not wanted:
            self._broken(error.message)
