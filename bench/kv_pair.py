"""Two processes for `bench.kv_transfer`: one rank that sends KV and one that receives it.

Each is kept to one core. The receiving process has a pool of KV for each shape, in shared memory,
to which frames come by gRPC or which the sender writes to by itself, also by NIXL where that works;
what comes is checked and covered as in serving. The leader's part, the commit, is left out: it is
one small call.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from xxhash import xxh3_64

from eastwest.clock import SystemClock
from eastwest.config import KVConfig
from eastwest.heap import keep_freed_memory
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.paged_kv import Bytes, PagedKV, pool_bytes
from kv_transfer.frame_codec import message_bytes
from kv_transfer.grpc_delivery import GrpcTransport
from kv_transfer.nixl_agent import nixl_problem
from kv_transfer.nixl_delivery import Nixl
from kv_transfer.nixl_pool import NixlPool
from kv_transfer.push_server import PushServer
from kv_transfer.ranks import Arrived, Opening
from kv_transfer.receiver import Receiver
from kv_transfer.sender import KvSender
from kv_transfer.shared_memory import MappedPool, SharedMemory, SharedPool
from kv_transfer.transport import Target, TransportProvider

TOTAL_BYTES = 256 << 20
LIMIT_S = 60.0
CONFIG = KVConfig()
_TCP_BYTES = 4 << 20  # of one call: faster than more
_PIECE_BYTES = 1 << 19  # of one copy that is hashed afterwards
_SPEC = KVSpec(num_layers=30, num_kv_heads=3, key_dim=64, value_dim=64, dtype="bfloat16")


@dataclass(frozen=True, slots=True)
class Shape:
    """256 MiB of KV of SmolLM2-135M in bfloat16, as it lies in two pools.

    scattered: blocks in random order on both sides, and the sender has one of three heads, as one
    rank of a TP3 group that feeds a TP1 one.
    """

    name: str
    block_tokens: int
    scattered: bool

    @property
    def layout(self) -> ParallelLayout:
        """Of the sending side."""
        return ParallelLayout(tp=3 if self.scattered else 1)

    @property
    def num_blocks(self) -> int:
        return -(-TOTAL_BYTES // self.bytes_of(1, self.layout))

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_tokens

    @property
    def bytes(self) -> int:
        """Sent in one transfer."""
        return self.bytes_of(self.num_blocks, self.layout)

    def bytes_of(self, num_blocks: int, layout: ParallelLayout) -> int:
        """Of so many blocks on the first rank of `layout`."""
        return pool_bytes(_SPEC, shard_of(_SPEC, layout, 0), num_blocks, self.block_tokens)

    def blocks(self, seed: int) -> tuple[int, ...]:
        """Of the sequence, in one pool."""
        order = np.arange(self.num_blocks)
        if self.scattered:
            order = np.random.default_rng(seed).permutation(self.num_blocks)
        return tuple(int(block) for block in order)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("contiguous", CONFIG.block_tokens, scattered=False),
        Shape("64 KiB pieces", 512, scattered=True),
        Shape("2 KiB pieces", CONFIG.block_tokens, scattered=True),
    )
}


def keep_to(core: int) -> None:
    """This process on one core, as in serving otherwise."""
    os.sched_setaffinity(0, {core})
    keep_freed_memory()


class _Events:
    def on_progress(self, rank: int, transfer_id: str) -> None:
        pass

    def on_arrived(self, rank: int, transfer_id: str, arrived: Arrived) -> None:
        pass


class _Pool:
    """The receiving rank of one shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.memory = SharedPool(shape.bytes_of(shape.num_blocks, ParallelLayout()))
        shard = shard_of(_SPEC, ParallelLayout(), 0)
        kv = PagedKV(self.memory.buffer, _SPEC, shard, shape.num_blocks, shape.block_tokens)
        self.receiver = Receiver(kv, _Events(), rank=0, epoch=1)
        self.targets: dict[Transport, Target] = {Transport.SHARED_MEMORY: self.memory}
        if not nixl_problem():
            nixl = NixlPool(self.memory.buffer, SystemClock(), silence_s=LIMIT_S)
            self.targets[Transport.NIXL] = nixl

    async def serve(self) -> dict[Transport, RankEndpoint]:
        """Where each transport that there is finds it."""
        size = message_bytes(CONFIG.frame_bytes)
        server = PushServer(self.receiver, SystemClock(), idle_s=LIMIT_S, message_bytes=size)
        port = await server.start("127.0.0.1")
        memories = {Transport.GRPC: ""} | {t: x.descriptor for t, x in self.targets.items()}
        return {t: RankEndpoint(0, f"127.0.0.1:{port}", m) for t, m in memories.items()}

    def open(self, transfer_id: str, transport: Transport) -> None:
        shape = self.shape
        if transport in self.targets:
            self.targets[transport].fence.open(transfer_id)
        blocks = shape.blocks(2)
        self.receiver.open(
            Opening(transfer_id, blocks, 0, shape.num_blocks, shape.num_tokens, transport)
        )

    async def close(self, transfer_id: str, transport: Transport) -> None:
        self.receiver.close(transfer_id, None)
        target = self.targets.get(transport)
        # What a sender said of its end may be on its way.
        while target is not None and not target.fence.close(transfer_id):  # noqa: ASYNC110
            await asyncio.sleep(0)


def receive(commands: Connection, core: int) -> None:
    """The receiving process: takes ``(shape, transfer id, transport)`` to open, then anything to
    close it; ends with None."""
    keep_to(core)
    asyncio.run(_serve(commands))


async def _serve(commands: Connection) -> None:
    pools = {name: _Pool(shape) for name, shape in SHAPES.items()}
    endpoints = {name: await pool.serve() for name, pool in pools.items()}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_take_tcp, args=(listener,), daemon=True).start()
        commands.send((endpoints, listener.getsockname()[1]))
        while (command := await asyncio.to_thread(commands.recv)) is not None:
            name, transfer_id, transport = command
            pools[name].open(transfer_id, transport)
            commands.send("open")
            await asyncio.to_thread(commands.recv)
            await pools[name].close(transfer_id, transport)
            commands.send("closed")


def _take_tcp(listener: socket.socket) -> None:
    memory = memoryview(bytearray(TOTAL_BYTES))
    while True:
        connection, _ = listener.accept()
        with connection:
            received = 0
            while received < TOTAL_BYTES:
                received += connection.recv_into(memory[received : received + _TCP_BYTES])
            connection.sendall(b"!")


class Source:
    """The sending process, on its event loop."""

    def __init__(self, commands: Connection) -> None:
        self._commands = commands
        self._endpoints: Mapping[str, Mapping[Transport, RankEndpoint]]
        self._endpoints, self._tcp_port = commands.recv()
        self._providers: dict[Transport, TransportProvider] = {
            Transport.GRPC: GrpcTransport(),
            Transport.SHARED_MEMORY: SharedMemory(),
        }
        if not nixl_problem():
            self._providers[Transport.NIXL] = Nixl(SystemClock())
        pools = {name: _filled(shape) for name, shape in SHAPES.items()}
        self._senders = {name: self._sender(SHAPES[name], pool) for name, pool in pools.items()}
        self._pool = pools["contiguous"]
        shared = self._endpoints["contiguous"][Transport.SHARED_MEMORY]
        self._their_pool = MappedPool(shared.memory).memory
        self._bytes = np.random.default_rng(0).integers(0, 256, TOTAL_BYTES, np.uint8)
        self._copy = np.zeros_like(self._bytes)
        self._transfers = 0

    def tcp(self) -> float:
        """Seconds of 256 MiB through a raw socket, into memory of that size, unchecked."""
        source = self._bytes.data
        with socket.create_connection(("127.0.0.1", self._tcp_port)) as connection:
            begin = time.perf_counter()
            for start in range(0, TOTAL_BYTES, _TCP_BYTES):
                connection.sendall(source[start : start + _TCP_BYTES])
            connection.recv(1)
            return time.perf_counter() - begin

    def memcpy(self) -> float:
        """Seconds of one copy of 256 MiB within this process."""
        begin = time.perf_counter()
        self._copy[...] = self._bytes
        return time.perf_counter() - begin

    def copy_and_hash(self) -> float:
        """Seconds of the same from one shared pool to another, hashed as it is copied: all that a
        sender of shared memory cannot leave out, and nothing else."""
        source, target = self._pool, self._their_pool
        begin = time.perf_counter()
        check = xxh3_64()
        for start in range(0, TOTAL_BYTES, _PIECE_BYTES):
            piece = source[start : start + _PIECE_BYTES]
            target[start : start + _PIECE_BYTES] = piece
            check.update(piece.data)
        check.intdigest()
        return time.perf_counter() - begin

    async def push(self, name: str, transport: Transport) -> float | None:
        """Seconds of one transfer: begun to all of it checked by the receiver, per 256 MiB. None
        where the transport is absent."""
        shape, endpoint = SHAPES[name], self._endpoints[name].get(transport)
        if endpoint is None or transport not in self._providers:
            return None
        self._transfers += 1
        transfer_id = f"t{self._transfers}"
        self._commands.send((name, transfer_id, transport))
        self._commands.recv()
        ticket = Ticket(
            transfer_id=transfer_id,
            worker_id="receiver",
            epoch=1,
            address=endpoint.address,
            endpoints=(endpoint,),
            layout=ParallelLayout(),
            kv=_SPEC,
            fingerprint="bench",
            block_tokens=shape.block_tokens,
            first_block=0,
            num_blocks=shape.num_blocks,
            num_tokens=shape.num_tokens,
            lease_s=LIMIT_S,
            transport=transport,
            blocks=shape.blocks(2),
        )
        sender = self._senders[name]
        begin = time.perf_counter()
        sender.begin(ticket, shape.blocks(1), LIMIT_S)
        sender.ready(transfer_id, shape.num_tokens)
        stats = await sender.drain(transfer_id)
        took = time.perf_counter() - begin
        await sender.stop(transfer_id)
        assert stats.bytes == shape.bytes
        self._commands.send("close")
        self._commands.recv()
        return took * TOTAL_BYTES / shape.bytes

    async def close(self) -> None:
        for sender in self._senders.values():
            await sender.close()
        for provider in self._providers.values():
            provider.close()
        self._commands.send(None)

    def _sender(self, shape: Shape, pool: Bytes) -> KvSender:
        layout = shape.layout
        shard = shard_of(_SPEC, layout, 0)
        kv = PagedKV(pool.data, _SPEC, shard, shape.num_blocks, shape.block_tokens)
        return KvSender(kv, layout, 0, self._providers, CONFIG, SystemClock(), fingerprint="bench")


def _filled(shape: Shape) -> Bytes:
    """The sender's pool, which is shared memory as in serving."""
    pool = np.frombuffer(SharedPool(shape.bytes).buffer, np.uint8)
    pool[...] = np.random.default_rng(1).integers(0, 256, shape.bytes, np.uint8)
    return pool
