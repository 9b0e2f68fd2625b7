"""The offline store against the same bytes through a raw socket, and through redis-py.

A session of 4,000 tokens in the shape of SmolLM2-135M, in 16-token blocks, handed over in batches
as workers do. The raw socket blocks, sends every command before it reads a reply, receives into
one buffer that it keeps, checks nothing and makes nothing of what it reads: the limit of this
server and this socket. redis-py is its asyncio client with hiredis, pipelines and MGET, on the
same batches, checking nothing. Each round empties the server before each writer; figures are
medians of the rounds.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from redis.asyncio import Redis

from eastwest.blocks import BlockHash, block_hashes, hash_seed
from eastwest.clock import SystemClock
from eastwest.config import StoreConfig
from eastwest.layout import KVSpec
from kv_store.connect import open_block_store
from kv_store.embedded import EmbeddedValkey

SESSION_TOKENS = 4000
BLOCK_TOKENS = 16
BATCH_BYTES = 8 << 20
DTYPES = ("bfloat16", "float32")
# What the ratio should reach, by what it is taken against.
GOALS = {"raw pipelined unix socket": 0.7, "redis-py": 1.0}
TTL_MS = 600_000

Blocks = Sequence[tuple[BlockHash, bytes]]
Timings = dict[tuple[str, str], list[float]]


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this benchmark; see the module docstring."""
    rows: list[dict[str, Any]] = []
    with EmbeddedValkey(2 << 30) as server:
        for dtype in DTYPES:
            rows += asyncio.run(_compare(server.url, dtype, rounds=5 if quick else 15))
    return rows


async def _compare(url: str, dtype: str, rounds: int) -> list[dict[str, Any]]:
    spec = KVSpec(num_layers=30, num_kv_heads=3, key_dim=64, value_dim=64, dtype=dtype)
    names = block_hashes(range(SESSION_TOKENS), BLOCK_TOKENS, hash_seed("bench", ""))
    rng = np.random.default_rng(0)
    size = spec.bytes_per_token * BLOCK_TOKENS
    blocks = [(name, rng.bytes(size)) for name in names]
    batch = BATCH_BYTES // size
    batches = [blocks[start : start + batch] for start in range(0, len(blocks), batch)]
    config = StoreConfig(timeout_s=60.0)
    store = open_block_store(config, url, spec, BLOCK_TOKENS, "bench", SystemClock())

    async def write(blocks: Blocks) -> None:
        await store.write(blocks)

    async def read(blocks: Blocks) -> None:
        assert len(await store.read([name for name, _ in blocks])) == len(blocks)

    taken: Timings = defaultdict(list)
    with RawSocket(url, blocks) as raw:
        async with Redis.from_url(url, socket_read_size=1 << 20) as redis:
            peer = RedisPy(redis)
            for _ in range(rounds + 1):
                raw.empty()
                _timed(taken["write", "raw pipelined unix socket"], raw.write)
                _timed(taken["read", "raw pipelined unix socket"], raw.read)
                raw.empty()
                await _batched(taken["write", "redis-py"], peer.write, batches)
                await _batched(taken["read", "redis-py"], peer.read, batches)
                raw.empty()
                await _batched(taken["write", ""], write, batches)
                await _batched(taken["read", ""], read, batches)
    await store.close()
    return [
        _row(f"{way}, {dtype}", against, taken[way, ""], taken[way, against], size * len(names))
        for way in ("write", "read")
        for against in GOALS
    ]


def _timed(taken: list[float], call: Callable[[], None]) -> None:
    begin = time.perf_counter()
    call()
    taken.append(time.perf_counter() - begin)


async def _batched(
    taken: list[float], call: Callable[[Blocks], Awaitable[None]], batches: Sequence[Blocks]
) -> None:
    begin = time.perf_counter()
    for blocks in batches:
        await call(blocks)
    taken.append(time.perf_counter() - begin)


def _row(
    metric: str, against: str, ours: list[float], others: list[float], size: int
) -> dict[str, Any]:
    # The first round warms everything up.
    value = size / statistics.median(ours[1:]) / 2**30
    against_value = size / statistics.median(others[1:]) / 2**30
    return {
        "metric": f"{metric}, {SESSION_TOKENS} tokens",
        "value": value,
        "unit": "GiB/s",
        "against": against,
        "against_value": against_value,
        "ratio": value / against_value,
        "goal": GOALS[against],
        "met": value / against_value >= GOALS[against],
    }


class RedisPy:
    """What one would write with the client library alone."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def write(self, blocks: Blocks) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, value in blocks:
                pipe.set(name, value, px=TTL_MS)
            await pipe.execute()

    async def read(self, blocks: Blocks) -> None:
        assert None not in await self._redis.mget([name for name, _ in blocks])


class RawSocket:
    """The least that can be done to move the same values."""

    def __init__(self, url: str, blocks: Blocks) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(url.removeprefix("unix://"))
        self._blocks = blocks
        size = len(blocks[0][1])
        self._reply_bytes = len(b"$%d\r\n" % size) + size + 2
        self._memory = memoryview(bytearray(self._reply_bytes * len(blocks)))

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def empty(self) -> None:
        self._socket.sendall(b"FLUSHALL SYNC\r\n")
        self._receive(len(b"+OK\r\n"))

    def write(self) -> None:
        for key, value in self._blocks:
            head = (len(key), key, len(value))
            self._socket.sendall(b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % head)
            self._socket.sendall(value)
            self._socket.sendall(b"\r\n$2\r\nPX\r\n$6\r\n%d\r\n" % TTL_MS)
        self._receive(len(b"+OK\r\n") * len(self._blocks))

    def read(self) -> None:
        keys = (key for key, _ in self._blocks)
        commands = (b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key) for key in keys)
        self._socket.sendall(b"".join(commands))
        self._receive(self._reply_bytes * len(self._blocks))

    def _receive(self, count: int) -> None:
        received = 0
        while received < count:
            received += self._socket.recv_into(self._memory[received:count])
