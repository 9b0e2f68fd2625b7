"""SIMULATED workers behind a real control stream: for tests and benchmarks of the router.

A `WorkerServer` speaks `Worker.Control` over gRPC as a replica does, but computes nothing:
tokens come from a function, there is no KV, and its transfer is a call from one simulated worker
to another of the same `WorkerServers`. (`eastwest.testing.simulated` has workers in virtual time,
without a network.) Gates hold work where a test wants it; commands are
recorded; `holding` is what a real worker would hold memory for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc
import grpc.aio

from eastwest.blocks import blocks_for
from eastwest.errors import ErrorCode, Phase
from eastwest.messages import (
    Abort,
    Command,
    Event,
    Failed,
    FirstStep,
    Heartbeat,
    Load,
    ModelInfo,
    Prefill,
    Prefilled,
    Reserve,
    Reserved,
    SequenceOutput,
    Stepped,
)
from eastwest.rpc import CONTROL_MESSAGE_BYTES, server_options
from eastwest.stopping import StopRule
from eastwest.testing.builders import a_load, a_ticket, a_worker
from eastwest.testing.gates import Changes, Gate
from eastwest.types import Role, SampledToken, TopLogprob
from eastwest.v1 import worker_pb2, worker_pb2_grpc
from eastwest.wire import command_from_wire, event_to_wire, welcome_to_wire

# The simulated engine: the output token at an index, for a prompt.
NextToken = Callable[[Sequence[int], int], int]
CommandT = TypeVar("CommandT", bound=Command)

SIMULATED_NS = 1_000  # every duration that it reports
_OUTBOX_MAX = 1 << 16
_Outbox = asyncio.Queue[Event]
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Work:
    """A reservation, and once committed a running sequence."""

    reserve: Reserve
    router_id: str
    rule: StopRule
    generated: int = 0
    last: int = 0


@dataclass(slots=True)
class WorkerServers:
    """Simulated workers of one model that can hand KV to each other."""

    model: ModelInfo
    next_token: NextToken
    workers: dict[str, WorkerServer] = field(default_factory=dict)

    async def start(
        self,
        worker_id: str,
        role: Role,
        *,
        epoch: int = 1,
        port: int = 0,
        num_blocks: int = 4096,
        lease_s: float = 30.0,
    ) -> WorkerServer:
        """Start a worker, in the place of a stopped one of that id if there was one."""
        worker = WorkerServer(self, worker_id, role, epoch, num_blocks, lease_s)
        await worker.start(port)
        self.workers[worker_id] = worker
        return worker

    async def stop(self) -> None:
        """Stop all workers."""
        for worker in self.workers.values():
            await worker.stop()


class WorkerServer(worker_pb2_grpc.WorkerServicer):
    """One simulated replica and its gRPC server.

    reserving, prefilling and stepping are the gates before Reserved, Prefilled and each Stepped.
    commands: all that were received, heartbeats left out. silent: report no load to heartbeats.
    """

    def __init__(
        self,
        fleet: WorkerServers,
        worker_id: str,
        role: Role,
        epoch: int,
        num_blocks: int,
        lease_s: float,
    ) -> None:
        self._fleet = fleet
        self.info = a_worker(worker_id, role, epoch=epoch, num_blocks=num_blocks, model=fleet.model)
        self._lease_s = lease_s
        self.reserving, self.prefilling, self.stepping = Gate(), Gate(), Gate()
        self.commands: list[Command] = []
        self._greetings = 0
        self._heartbeats = 0
        self.silent = False
        self._changes = Changes()
        self._outboxes: dict[str, _Outbox] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._reserved: dict[str, _Work] = {}
        self._prefills: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, _Work] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: grpc.aio.Server | None = None

    # For tests.

    @property
    def address(self) -> str:
        """``host:port`` of the server."""
        return self.info.address

    @property
    def holding(self) -> set[str]:
        """Requests that a real worker would hold memory for."""
        return {*self._reserved, *self._prefills, *self._running}

    async def received(self, kind: type[CommandT], count: int = 1) -> list[CommandT]:
        """All commands of a kind, once there are `count`."""

        def of_kind() -> list[CommandT]:
            return [c for c in self.commands if isinstance(c, kind)]

        await self._changes.until(lambda: len(of_kind()) >= count)
        return of_kind()

    async def greeted(self, count: int) -> None:
        """Wait until routers have said Hello so many times."""
        await self._changes.until(lambda: self._greetings >= count)

    async def heard_heartbeats(self, count: int) -> None:
        """Wait until so many heartbeats have come."""
        await self._changes.until(lambda: self._heartbeats >= count)

    async def freed(self) -> None:
        """Wait until nothing is held."""
        await self._changes.until(lambda: not self.holding)

    def fail(self, request_id: str, code: ErrorCode, message: str, phase: Phase) -> None:
        """End the worker's part of a request as a real one would."""
        router_id = self._drop(request_id)
        self._emit(router_id, Failed(request_id, code, message, phase))

    def report(self) -> None:
        """Tell all routers the load, unasked."""
        for router_id in self._outboxes:
            self._emit(router_id, self._load())

    def break_streams(self) -> None:
        """Break all control streams; the server lives on, and so does the incarnation."""
        for end in self._ends.values():
            end.set()

    # Life.

    async def start(self, port: int = 0) -> None:
        """Serve on the loopback interface."""
        self._server = grpc.aio.server(options=server_options(CONTROL_MESSAGE_BYTES))
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.info = replace(self.info, address=f"127.0.0.1:{bound}")
        await self._server.start()
        self._spawn(self._step())

    async def stop(self) -> None:
        """Die: all streams break, everything held is gone. Idempotent."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # The control stream.

    async def Control(  # noqa: N802 - named by the .proto
        self, request_iterator: AsyncIterator[worker_pb2.RouterMessage], context: _Context
    ) -> None:
        """See worker.proto."""
        hello = (await anext(aiter(request_iterator))).hello
        self._greetings += 1
        self._changes.notify()
        outbox: _Outbox = asyncio.Queue(_OUTBOX_MAX)
        end = asyncio.Event()
        self._outboxes[hello.router_id], self._ends[hello.router_id] = outbox, end
        await context.write(worker_pb2.WorkerMessage(welcome=welcome_to_wire(self.info)))
        self._emit(hello.router_id, self._load())
        tasks = [
            asyncio.create_task(self._read(hello.router_id, request_iterator)),
            asyncio.create_task(self._write(outbox, context)),
            asyncio.create_task(_waited(end)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            if self._outboxes.get(hello.router_id) is outbox:
                del self._outboxes[hello.router_id], self._ends[hello.router_id]
                self._router_gone(hello.router_id)
        if end.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the simulated stream is broken")

    async def _read(
        self, router_id: str, messages: AsyncIterator[worker_pb2.RouterMessage]
    ) -> None:
        async for message in messages:
            for wire in message.commands.commands:
                command = command_from_wire(wire)
                self._handle(router_id, command)

    async def _write(self, outbox: _Outbox, context: _Context) -> None:
        while True:
            events = [await outbox.get()]
            while not outbox.empty():
                events.append(outbox.get_nowait())
            batch = worker_pb2.Events(
                epoch=self.info.epoch, events=[event_to_wire(e) for e in events]
            )
            await context.write(worker_pb2.WorkerMessage(events=batch))

    def _emit(self, router_id: str, event: Event) -> None:
        if (outbox := self._outboxes.get(router_id)) is not None:
            outbox.put_nowait(event)

    def _router_gone(self, router_id: str) -> None:
        held = {**self._reserved, **self._running}
        for request_id in [r for r, w in held.items() if w.router_id == router_id]:
            self._drop(request_id)
        for request_id in list(self._prefills):
            self._drop(request_id)

    # Commands.

    def _handle(self, router_id: str, command: Command) -> None:
        match command:
            case Heartbeat():
                self._heartbeats += 1
                if not self.silent:
                    self._emit(router_id, self._load())
            case Reserve():
                rule = StopRule.of(command.sampling, self.info.model.eos_ids, command.max_tokens)
                work = _Work(command, router_id, rule)
                self._reserved[command.request_id] = work
                self._spawn(self._reserve(work))
            case Prefill():
                task = self._spawn(self._prefill(router_id, command))
                self._prefills[command.request_id] = task
            case Abort():
                self._drop(command.request_id)
        if not isinstance(command, Heartbeat):
            self.commands.append(command)
        self._changes.notify()

    def _drop(self, request_id: str) -> str:
        """Hold nothing of a request any more; whose it was."""
        work = self._reserved.pop(request_id, None) or self._running.pop(request_id, None)
        if (task := self._prefills.pop(request_id, None)) is not None:
            task.cancel()
        self._changes.notify()
        return work.router_id if work is not None else next(iter(self._outboxes), "")

    async def _reserve(self, work: _Work) -> None:
        await self.reserving.passed()
        request = work.reserve
        if request.request_id not in self._reserved:
            return
        ticket = a_ticket(
            self.info,
            transfer_id=f"transfer-{request.request_id}",
            tokens=len(request.given),
            lease_s=self._lease_s,
        )
        self._emit(work.router_id, Reserved(request.request_id, ticket, 0, 0))

    async def _prefill(self, router_id: str, command: Prefill) -> None:
        await self.prefilling.passed()
        rule = StopRule.of(command.sampling, self.info.model.eos_ids, command.max_tokens)
        before = len(command.output)
        token = self._sample(command.prompt, before, command.sampling.logprobs)
        finish = rule.finish(token.token, before + 1)
        prefilled = Prefilled(
            request_id=command.request_id,
            token=token,
            finish=finish,
            queue_ns=SIMULATED_NS,
            prefill_ns=SIMULATED_NS,
            computed_tokens=len(command.given),
            loaded_tokens=0,
        )
        self._emit(router_id, prefilled)
        receiver = self._fleet.workers[command.ticket.worker_id]
        receiver.commit(command.request_id, finished=finish is not None)
        del self._prefills[command.request_id]
        self._changes.notify()

    def commit(self, request_id: str, *, finished: bool) -> None:
        """The KV of a reservation has arrived, in simulation."""
        work = self._reserved.pop(request_id, None)
        if work is not None and not finished:
            work.generated = len(work.reserve.output) + 1
            self._running[request_id] = work
            self._wake.set()
        self._changes.notify()

    # The engine, simulated.

    async def _step(self) -> None:
        """One message a step for all sequences, as long as there are any."""
        while True:
            while not self._running:
                self._wake.clear()
                await self._wake.wait()
            await self.stepping.passed()
            outputs: dict[str, list[SequenceOutput]] = {}
            for request_id, work in list(self._running.items()):
                outputs.setdefault(work.router_id, []).append(self._advance(request_id, work))
            for router_id, batch in outputs.items():
                self._emit(router_id, Stepped(tuple(batch)))
            self._changes.notify()
            await asyncio.sleep(0)  # an engine step would let others run, too

    def _advance(self, request_id: str, work: _Work) -> SequenceOutput:
        token = self._sample(work.reserve.prompt, work.generated, work.reserve.sampling.logprobs)
        first = None
        if work.generated == len(work.reserve.output) + 1:
            size = len(work.reserve.given) * self.info.model.kv.bytes_per_token
            first = FirstStep(SIMULATED_NS, SIMULATED_NS, SIMULATED_NS, SIMULATED_NS, size)
        work.generated += 1
        finish = work.rule.finish(token.token, work.generated)
        if finish is not None:
            del self._running[request_id]
        return SequenceOutput(request_id, (token,), finish, first)

    def _sample(self, prompt: Sequence[int], index: int, logprobs: int | None) -> SampledToken:
        token = self._fleet.next_token(prompt, index)
        if logprobs is None:
            return SampledToken(token)
        top = tuple(TopLogprob(rank, -1.0 - rank) for rank in range(logprobs))
        return SampledToken(token, -0.5, top)

    def _load(self) -> Load:
        held = {**self._reserved, **self._running}.values()
        used = sum(
            blocks_for(len(w.reserve.prompt) + w.reserve.max_tokens, self.info.block_tokens)
            for w in held
        )
        return a_load(
            free_blocks=self.info.num_blocks - used,
            num_blocks=self.info.num_blocks,
            running=len(self._running),
            waiting=len(self._reserved),
        )


async def _waited(event: asyncio.Event) -> None:
    await event.wait()
