"""The worker's end of the control stream: commands in, events out, one stream a router.

    Hello ──▶ Welcome ──▶ Commands / Events … ──▶ stream ends: what the router owned is ended

Events that pile up while a write is under way leave together in one message, decode steps that
follow each other as one step, and changes of named blocks with them. A router that does not read
them is cut off when `EVENTS_MAX` are waiting. Of KV events it merely misses some when
`KV_EVENTS_MAX` wait; it sees the gap and asks for the whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from typing import Protocol

import grpc.aio

from eastwest import wire
from eastwest.errors import (
    EastWestError,
    Incompatible,
    InvalidArgument,
    Overloaded,
    StaleEpoch,
    Unavailable,
)
from eastwest.kv_events import KvEvents
from eastwest.messages import PROTOCOL_VERSION, Command, Event, Load, ResyncKv, Stepped, WorkerInfo
from eastwest.rpc import abort_with
from eastwest.v1 import worker_pb2, worker_pb2_grpc
from kv_transfer.auditor import Audit

log = logging.getLogger(__name__)

EVENTS_MAX = 65_536
KV_EVENTS_MAX = 256

_Context = grpc.aio.ServicerContext[worker_pb2.RouterMessage, worker_pb2.WorkerMessage]


class CommandHandler(Protocol):
    """What a replica does for its routers; called on the event loop."""

    def handle(self, router_id: str, command: Command) -> None:
        """Carry out a command; failures are answered by events."""

    def router_gone(self, router_id: str) -> None:
        """End everything that this router owns."""

    def load(self) -> Load:
        """The worker's state now."""

    def kv_events(self) -> Iterable[KvEvents]:
        """How named blocks have changed since the last call; each change is given once."""

    def kv_whole(self) -> Iterable[KvEvents]:
        """All named blocks, for a router that knows nothing of them."""

    def audit(self) -> Audit:
        """Ledger against what is held."""

    @property
    def transfers_open(self) -> int:
        """Reservations whose KV has not all arrived."""


class _Outbox:
    """Events on their way to one router."""

    def __init__(self) -> None:
        self._events: list[worker_pb2.Event] = []
        self._steps: Stepped | None = None  # behind all of `_events`
        self._kv_events = 0
        self._ready = asyncio.Event()
        self._broken: EastWestError | None = None
        self._last = False

    def put(self, event: Event) -> None:
        if len(self._events) >= EVENTS_MAX:
            self.break_off(Overloaded(f"{EVENTS_MAX} events are unread"))
            return
        if isinstance(event, Stepped):
            steps = self._steps
            self._steps = event if steps is None else wire.merged_steps(steps, event)
        else:
            self._close_steps()
            self._events.append(wire.event_to_wire(event))
        self._ready.set()

    def _close_steps(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            self._events.append(wire.event_to_wire(steps))

    def put_kv(self, event: worker_pb2.Event) -> None:
        """A change of named blocks. It makes nobody wait, and is dropped where too many do."""
        if self._kv_events < KV_EVENTS_MAX:
            self._kv_events += 1
            self._events.append(event)
            self._ready.set()

    def break_off(self, error: EastWestError) -> None:
        self._broken = error
        self._ready.set()

    def finish(self) -> None:
        """What waits is the last that is written."""
        self._last = True
        self._ready.set()

    async def wait(self) -> bool:
        """Until events are waiting; False where none are to come. Raises what broke the stream."""
        await self._ready.wait()
        if self._broken is not None:
            raise self._broken
        return bool(self._events) or not self._last

    def take(self) -> list[worker_pb2.Event]:
        """All waiting events."""
        self._ready.clear()
        self._close_steps()
        events, self._events, self._kv_events = self._events, [], 0
        if self._last:
            self._ready.set()
        return events


class ControlService(worker_pb2_grpc.WorkerServicer):
    """Serves `Worker`."""

    def __init__(
        self, handler: CommandHandler, info: Callable[[], WorkerInfo], heartbeat_s: float
    ) -> None:
        self._handler = handler
        self._info = info
        self._heartbeat_s = heartbeat_s
        self._outboxes: dict[str, _Outbox] = {}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service; called once, before the server starts."""
        worker_pb2_grpc.add_WorkerServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """End all streams: their routers hear that the worker stops."""
        for outbox in self._outboxes.values():
            outbox.break_off(Unavailable("the worker is stopping"))

    def finish(self) -> None:
        """End all streams behind what waits to be written."""
        for outbox in self._outboxes.values():
            outbox.finish()

    @property
    def routers(self) -> Collection[str]:
        """Those that have a stream."""
        return self._outboxes.keys()

    def emit(self, router_id: str, event: Event) -> None:
        """Queue an event; dropped where the router is gone, since its work is ended then."""
        outbox = self._outboxes.get(router_id)
        if outbox is not None:
            outbox.put(event)

    async def Control(  # noqa: N802 - named by the .proto
        self,
        request_iterator: AsyncIterator[worker_pb2.RouterMessage],
        context: _Context,
    ) -> None:
        """See worker.proto."""
        info = self._info()
        router_id, outbox = "", None
        try:
            router_id = await self._hello(request_iterator)
            outbox = self._take_over(router_id)
            welcome = worker_pb2.WorkerMessage(welcome=wire.welcome_to_wire(info))
            await context.write(welcome)
            await _first_ended(
                self._read(router_id, outbox, info.epoch, request_iterator),
                self._write(outbox, info.epoch, context),
                self._report_load(router_id),
            )
        except EastWestError as error:
            log.warning("control stream of router %s ends: %s", router_id, error.message)
            await abort_with(context, error)
        finally:
            if outbox is not None and self._outboxes.get(router_id) is outbox:
                del self._outboxes[router_id]
                self._handler.router_gone(router_id)

    async def Audit(  # noqa: N802 - named by the .proto
        self,
        request: worker_pb2.AuditRequest,
        context: grpc.aio.ServicerContext[worker_pb2.AuditRequest, worker_pb2.AuditReport],
    ) -> worker_pb2.AuditReport:
        """See worker.proto."""
        audit, load = self._handler.audit(), self._handler.load()
        return worker_pb2.AuditReport(
            num_blocks=audit.num_blocks,
            free_blocks=audit.free_blocks,
            cached_blocks=audit.cached_blocks,
            held_blocks=audit.held_blocks,
            leaked_blocks=audit.leaked_blocks,
            owners=audit.owners,
            findings=audit.findings,
            running=load.running,
            waiting=load.waiting,
            transfers_open=self._handler.transfers_open,
        )

    def _take_over(self, router_id: str) -> _Outbox:
        """The router's stream from here on. One that it still has is broken, whether it knows or
        not, and what was owned through it is ended."""
        former = self._outboxes.get(router_id)
        if former is not None:
            former.break_off(Unavailable("the router has connected anew"))
            self._handler.router_gone(router_id)
        outbox = self._outboxes[router_id] = _Outbox()
        self._resync(outbox)
        return outbox

    def _flush_kv(self) -> None:
        """What has changed of named blocks goes to all routers."""
        for events in self._handler.kv_events():
            event = wire.event_to_wire(events)
            for outbox in self._outboxes.values():
                outbox.put_kv(event)

    def _resync(self, outbox: _Outbox) -> None:
        """All named blocks go to one router, in order with the changes before and after."""
        self._flush_kv()
        for events in self._handler.kv_whole():
            outbox.put(events)

    async def _hello(self, messages: AsyncIterator[worker_pb2.RouterMessage]) -> str:
        message = await anext(aiter(messages), None)
        if message is None or message.WhichOneof("message") != "hello":
            raise InvalidArgument("the first message of a control stream must be hello")
        hello = message.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            raise Incompatible(
                f"router speaks protocol version {hello.protocol_version}; "
                f"allowed: {PROTOCOL_VERSION}"
            )
        if not hello.router_id:
            raise InvalidArgument("hello.router_id is empty; allowed: a unique router id")
        return hello.router_id

    async def _read(
        self,
        router_id: str,
        outbox: _Outbox,
        epoch: int,
        messages: AsyncIterator[worker_pb2.RouterMessage],
    ) -> None:
        async for message in messages:
            if self._outboxes.get(router_id) is not outbox:
                return  # what this stream asks for now, its end would not end
            if message.WhichOneof("message") != "commands":
                raise InvalidArgument("hello comes once; after it, only commands are allowed")
            if message.commands.epoch != epoch:
                raise StaleEpoch(
                    f"commands are for epoch {message.commands.epoch}; this worker is {epoch}"
                )
            for command in message.commands.commands:
                value = wire.command_from_wire(command)
                if isinstance(value, ResyncKv):
                    self._resync(outbox)
                else:
                    self._handler.handle(router_id, value)

    async def _write(self, outbox: _Outbox, epoch: int, context: _Context) -> None:
        while await outbox.wait():
            self._flush_kv()
            events = worker_pb2.Events(epoch=epoch, events=outbox.take())
            await context.write(worker_pb2.WorkerMessage(events=events))

    async def _report_load(self, router_id: str) -> None:
        while True:
            self.emit(router_id, self._handler.load())
            await asyncio.sleep(self._heartbeat_s)


async def _first_ended(*works: Coroutine[None, None, None]) -> None:
    """Until one of `works` has ended, which is raised where it failed. The others are stopped."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()
