"""One control stream to one worker: dial, greet, batch commands, dispatch events, dial again.

States: CONNECTING (dialling, greeting or backing off) -> UP (welcomed) -> CONNECTING ... until
`close`. Each UP is reported once, and followed by exactly one DOWN for the same epoch.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from functools import partial
from typing import NoReturn, Protocol

from eastwest.errors import EastWestError, Incompatible, Unavailable
from eastwest.messages import PROTOCOL_VERSION, Command, Event, WorkerInfo
from eastwest.v1 import worker_pb2 as worker
from eastwest.wire import command_to_wire, event_from_wire, welcome_from_wire
from router.control_stream import ControlStream

log = logging.getLogger(__name__)

GREETING_TIMEOUT_S = 5.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0
BATCH_BYTES = 1 << 20


class LinkOwner(Protocol):
    """Who a link reports to: on the event loop, in order, never concurrently."""

    def worker_up(self, info: WorkerInfo) -> None:
        """The worker is welcome. Raises `Incompatible` where it cannot serve here."""

    def worker_down(self, worker_id: str, epoch: int, reason: str) -> None:
        """The stream of this incarnation has ended."""

    def worker_events(self, worker_id: str, epoch: int, events: Sequence[Event]) -> None:
        """What the worker said, in its order."""


class WorkerLink:
    """The stream to the worker at `address`, kept up until `close`.

    queue_max: commands waiting to be written; beyond it the worker is not reading and the
    stream is broken.
    """

    def __init__(
        self,
        worker_id: str,
        address: str,
        owner: LinkOwner,
        *,
        router_id: str,
        rng: random.Random,
        queue_max: int,
    ) -> None:
        self.worker_id = worker_id
        self.address = address
        self._owner = owner
        self._router_id = router_id
        self._rng = rng
        self._queue_max = queue_max
        self._queue: list[Command] = []
        self._queued = asyncio.Event()
        self._broken: asyncio.Future[NoReturn] | None = None
        self._epoch = 0
        self._up = False
        self._failures = 0
        self._last_reason = ""
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin dialling. Called once, on the event loop."""
        assert self._task is None
        self._task = asyncio.create_task(self._run(), name=f"link {self.worker_id}")
        self._task.add_done_callback(self._log_defect)

    def send(self, epoch: int, command: Command) -> None:
        """Queue a command for this incarnation; dropped where it is gone, which was reported."""
        if not self._up or epoch != self._epoch:
            return
        if len(self._queue) >= self._queue_max:
            self.reset(f"worker {self.worker_id} does not read: {self._queue_max} commands wait")
            return
        self._queue.append(command)
        self._queued.set()

    def reset(self, reason: str) -> None:
        """Break the stream; the worker is reported down and dialled again."""
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(Unavailable(reason))

    async def close(self) -> None:
        """End the stream for good; a worker that was up is reported down. Idempotent."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            error = await self._connection()
            if self._closed:
                # A group of tasks that ends by an error takes a cancellation for its own.
                return
            self._note(error)
            ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 16))
            self._failures += 1
            await asyncio.sleep(ceiling * self._rng.uniform(0.5, 1.0))

    def _log_defect(self, task: asyncio.Task[None]) -> None:
        """Nothing but `close` ends `_run`; anything else must not pass in silence."""
        if not task.cancelled() and (defect := task.exception()) is not None:
            log.critical("the link to worker %s has failed", self.worker_id, exc_info=defect)

    def _note(self, error: EastWestError) -> None:
        """Log why the worker is not up, once for each reason."""
        if error.message != self._last_reason:
            self._last_reason = error.message
            log.warning("worker %s at %s: %s", self.worker_id, self.address, error.message)

    async def _connection(self) -> EastWestError:
        """One connection from dial to end; returns why it ended."""
        stream = ControlStream(self.address)
        try:
            try:
                async with asyncio.timeout(GREETING_TIMEOUT_S):
                    await stream.open()
                    info = await self._greet(stream)
            except TimeoutError:
                return Unavailable(f"no greeting within {GREETING_TIMEOUT_S} s")
            except EastWestError as error:
                return error
            return await self._converse(stream, info)
        finally:
            await stream.close()

    async def _greet(self, stream: ControlStream) -> WorkerInfo:
        hello = worker.Hello(router_id=self._router_id, protocol_version=PROTOCOL_VERSION)
        await stream.write(worker.RouterMessage(hello=hello))
        message = await stream.first()
        if message.WhichOneof("message") != "welcome":
            raise Incompatible("the worker did not answer Hello with Welcome")
        version = message.welcome.protocol_version
        if version != PROTOCOL_VERSION:
            raise Incompatible(f"it speaks protocol {version}; allowed: {PROTOCOL_VERSION}")
        info = welcome_from_wire(message.welcome)
        check_welcome(info, self.worker_id, self._epoch)
        return info

    async def _converse(self, stream: ControlStream, info: WorkerInfo) -> EastWestError:
        """Run an open stream until it ends; returns why."""
        epoch = info.epoch
        self._queued.clear()
        self._broken = asyncio.get_running_loop().create_future()
        # The owner may have commands for the worker as soon as it hears of it.
        self._epoch, self._up = epoch, True
        try:
            self._owner.worker_up(info)
        except EastWestError as error:
            self._up = False
            return error
        log.info("worker %s is up, epoch %d", self.worker_id, epoch)
        reason: EastWestError = Unavailable(f"the link to worker {self.worker_id} is closed")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(stream, epoch))
                tasks.create_task(_raised(stream.ended))
                tasks.create_task(_raised(self._broken))
                stream.listen(partial(self._take, epoch))
        except* EastWestError as group:
            reason = next(e for e in group.exceptions if isinstance(e, EastWestError))
        finally:
            self._up = False
            self._queue.clear()
            self._owner.worker_down(self.worker_id, epoch, reason.message)
        return reason

    def _take(self, epoch: int, messages: Sequence[worker.WorkerMessage]) -> None:
        """Tell the owner all that has come, at once. Raises where that is not what it should be."""
        events: list[Event] = []
        for message in messages:
            if message.WhichOneof("message") != "events" or message.events.epoch != epoch:
                raise Incompatible(f"a message is not events of epoch {epoch}")
            events.extend(map(event_from_wire, message.events.events))
        self._failures, self._last_reason = 0, ""
        self._owner.worker_events(self.worker_id, epoch, events)

    async def _write(self, stream: ControlStream, epoch: int) -> NoReturn:
        while True:
            await self._queued.wait()
            self._queued.clear()
            queue, self._queue = self._queue, []
            for batch in batches(queue):
                commands = worker.Commands(epoch=epoch, commands=batch)
                await stream.write(worker.RouterMessage(commands=commands))


async def _raised(broken: asyncio.Future[NoReturn]) -> None:
    """Raises what it fails with; a task that is cancelled leaves it as it is."""
    await asyncio.shield(broken)


def batches(commands: Sequence[Command]) -> list[list[worker.Command]]:
    """All of `commands` in order, in as few messages as `BATCH_BYTES` allows."""
    batches: list[list[worker.Command]] = []
    room = 0
    for command in commands:
        wire = command_to_wire(command)
        size = wire.ByteSize()
        if not batches or size > room:
            batches.append([])
            room = BATCH_BYTES
        batches[-1].append(wire)
        room -= size
    return batches


def check_welcome(info: WorkerInfo, worker_id: str, last_epoch: int) -> None:
    """Raise `Incompatible` where a worker's account of itself cannot be true or used."""
    model = info.model
    sizes = {
        "block_tokens": info.block_tokens,
        "num_blocks": info.num_blocks,
        "running_max": info.running_max,
        "step_tokens": info.step_tokens,
        "context_tokens": model.context_tokens,
        "vocab_size": model.vocab_size,
    }
    too_small = [f"{name} {size}" for name, size in sizes.items() if size < 1]
    if info.worker_id != worker_id:
        raise Incompatible(f"it says it is worker {info.worker_id!r}, not {worker_id!r}")
    if info.epoch < max(1, last_epoch):
        raise Incompatible(f"its epoch is {info.epoch}; allowed: from {max(1, last_epoch)}")
    if too_small:
        raise Incompatible(f"it has {', '.join(too_small)}; allowed: at least 1")
    if not model.fingerprint or any(i >= model.vocab_size for i in model.eos_ids):
        raise Incompatible("its model has no fingerprint, or end tokens outside its vocabulary")
    if info.num_blocks % info.layout.dp:
        raise Incompatible(
            f"its {info.num_blocks} blocks are not the same for each of {info.layout.dp} groups"
        )
