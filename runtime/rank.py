"""One rank of a replica: its engine, its paged KV, and both ends of KV transfer over it.

A plain object on one event loop; the engine's steps run in a thread of its own, in order. What
its leader calls of it is the same in the leader's process and behind a link to another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc.aio

from eastwest.clock import Clock
from eastwest.config import FRAME_BYTES_MAX, KVConfig
from eastwest.in_thread import in_thread
from eastwest.messages import Transport
from eastwest.ports import Buffer, Engine, StepRow
from eastwest.types import SampledToken
from kv_transfer.closing import FencedReceiver
from kv_transfer.frame_codec import message_bytes
from kv_transfer.grpc_delivery import GrpcTransport
from kv_transfer.push import FrameTap, pass_through
from kv_transfer.push_server import PushServer
from kv_transfer.ranks import Arrived, ReceiverEvents, ReceivingRank
from kv_transfer.receiver import Receiver
from kv_transfer.sender import KvSender
from kv_transfer.service import Commits, KvTransferService
from kv_transfer.transport import Target, TransportProvider

# A writer is mostly out in a moment; one that is stopped may take very long.
FENCE_POLL_MIN_S = 0.001
FENCE_POLL_MAX_S = 0.05


def _grpc_only() -> Mapping[Transport, TransportProvider]:
    return {Transport.GRPC: GrpcTransport()}


@dataclass(frozen=True, slots=True)
class Ways:
    """How KV can leave and reach one rank.

    providers: what it can send by. targets: its paged KV, for those that write to it by themselves.
    host: see `KvSource`.
    """

    providers: Mapping[Transport, TransportProvider] = field(default_factory=_grpc_only)
    targets: Mapping[Transport, Target] = field(default_factory=dict)
    host: str = ""

    @property
    def transports(self) -> tuple[Transport, ...]:
        """What it can both send and take by."""
        return tuple(t for t in self.providers if t in self.targets or t is Transport.GRPC)

    @property
    def memory(self) -> dict[Transport, str]:
        """How each transport that writes by itself finds the paged KV."""
        return {transport: target.descriptor for transport, target in self.targets.items()}

    def close(self) -> None:
        """After every transfer. Idempotent."""
        for provider in self.providers.values():
            provider.close()
        for target in self.targets.values():
            target.shut()


class Rank:
    """`engine` and `ways` are this object's from now on; `close` ends them. epoch: of the replica.

    receiving, sending: the two faces for transfers. tap: sees outgoing frames; tests damage them.
    """

    def __init__(
        self,
        engine: Engine,
        ways: Ways,
        epoch: int,
        config: KVConfig,
        clock: Clock,
        *,
        tap: FrameTap = pass_through,
    ) -> None:
        self.engine = engine
        self.ways = ways
        self._clock = clock
        self._idle_s = config.lease_s
        self._events: ReceiverEvents | None = None
        self._receiver = Receiver(engine.kv, self, rank=engine.rank, epoch=epoch)
        fences = {transport: target.fence for transport, target in ways.targets.items()}
        self._fenced = FencedReceiver(self._receiver, fences) if fences else None
        self.receiving: ReceivingRank = self._fenced or self._receiver
        self.sending = KvSender(
            engine.kv,
            engine.layout,
            engine.rank,
            ways.providers,
            config,
            clock,
            fingerprint=engine.model.fingerprint,
            tap=tap,
        )
        self._pushes = PushServer(
            self._receiver,
            clock,
            idle_s=config.lease_s,
            message_bytes=message_bytes(FRAME_BYTES_MAX),
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._polling: asyncio.Task[None] | None = None

    async def listen(self, host: str, events: ReceiverEvents) -> str:
        """Take frames from now on, at the ``host:port`` returned, and tell `events` of them."""
        self._events = events
        port = await self._pushes.start(host)
        if self._fenced is not None:
            self._polling = asyncio.create_task(self._poll(self._fenced), name="fence")
        return f"{host}:{port}"

    def take_commits(self, server: grpc.aio.Server, commits: Commits) -> None:
        """On the leader: `server` takes commits for all ranks, from its start on."""
        service = KvTransferService(self._receiver, commits, self._clock, idle_s=self._idle_s)
        service.add_to(server)

    async def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        """Run a batch; see `Engine.step`. KV of rows that feed a push is sent meanwhile.

        A cancelled caller still waits for the end of the step, as nothing can end it earlier."""
        loop = asyncio.get_running_loop()
        progress = self._progress(rows, loop) if any(row.transfer for row in rows) else None
        future = loop.run_in_executor(self._thread, self.engine.step, rows, progress)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def read(self, blocks: Sequence[int]) -> list[Buffer]:
        """The canonical bytes of the rank's shard of each of its blocks."""
        return await in_thread(self._read, blocks)

    async def write(self, blocks: Sequence[int], payloads: Sequence[Buffer]) -> None:
        """Fill blocks likewise."""
        await in_thread(self._write, blocks, payloads)

    async def close(self) -> None:
        """End all pushes, the engine and its thread; no step may be running."""
        await self.sending.close()
        await self._pushes.stop()
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
        self.ways.close()
        self._thread.shutdown(wait=True)
        self.engine.close()

    # ReceiverEvents.

    def on_progress(self, rank: int, transfer_id: str) -> None:
        if self._events is not None:
            self._events.on_progress(rank, transfer_id)

    def on_arrived(self, rank: int, transfer_id: str, arrived: Arrived) -> None:
        if self._events is not None:
            self._events.on_arrived(rank, transfer_id, arrived)

    def _progress(self, rows: Sequence[StepRow], loop: asyncio.AbstractEventLoop) -> _Progress:
        return _Progress([(i, r.transfer) for i, r in enumerate(rows) if r.transfer], self, loop)

    def _read(self, blocks: Sequence[int]) -> list[Buffer]:
        kv = self.engine.kv
        return [kv.read([block], kv.shard.layers, kv.shard.heads) for block in blocks]

    def _write(self, blocks: Sequence[int], payloads: Sequence[Buffer]) -> None:
        kv = self.engine.kv
        for block, payload in zip(blocks, payloads, strict=True):
            kv.write([block], kv.shard.layers, kv.shard.heads, payload)

    async def _poll(self, fenced: FencedReceiver) -> None:
        while True:
            await fenced.waiting.wait()
            pause_s = FENCE_POLL_MIN_S
            while fenced.waiting.is_set():
                await asyncio.sleep(pause_s)
                fenced.tick()
                pause_s = min(2 * pause_s, FENCE_POLL_MAX_S)


class _Progress:
    """Is a `StepProgress`: takes what the step's thread says to the sender on its event loop."""

    def __init__(
        self, pushing: list[tuple[int, str]], rank: Rank, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._pushing = pushing
        self._rank = rank
        self._loop = loop

    def __call__(self, layers: range, ends: Sequence[int]) -> None:
        self._loop.call_soon_threadsafe(
            self._tell, layers, [(transfer, ends[i]) for i, transfer in self._pushing]
        )

    def _tell(self, layers: range, ends: Sequence[tuple[str, int]]) -> None:
        for transfer_id, tokens in ends:
            self._rank.sending.progress(transfer_id, layers, tokens)
