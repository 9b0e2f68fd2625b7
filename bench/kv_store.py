"""The offline store against the same bytes through a raw pipelined socket to the same server.

A session of 4,000 tokens in the shape of SmolLM2-135M, in 16-token blocks. The raw socket blocks,
sends every command before it reads a reply, receives into one buffer that it keeps, checks
nothing and makes nothing of what it reads: the limit of this server and this socket. Each round
empties the server, then writes and reads once each way; figures are medians of the rounds.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from eastwest.blocks import BlockHash, block_hashes, hash_seed
from eastwest.clock import SystemClock
from eastwest.config import StoreConfig
from eastwest.layout import KVSpec
from kv_store.connect import open_block_store
from kv_store.embedded import EmbeddedValkey

SESSION_TOKENS = 4000
BLOCK_TOKENS = 16
DTYPES = ("bfloat16", "float32")
GOAL = 0.7
AGAINST = "raw pipelined unix socket"
TTL_MS = b"600000"
BATCH_BYTES = 8 << 20  # handed to the store at once, as workers do


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
    values = [rng.bytes(size) for _ in names]
    blocks = list(zip(names, values, strict=True))
    batch = BATCH_BYTES // size
    store = open_block_store(
        StoreConfig(timeout_s=60.0), url, spec, BLOCK_TOKENS, "bench", SystemClock()
    )
    seconds: dict[str, list[float]] = defaultdict(list)
    with RawSocket(url, names, values) as raw:
        for _ in range(rounds + 1):
            raw.empty()
            begin = time.perf_counter()
            raw.write()
            written = time.perf_counter()
            raw.read()
            seconds["raw write"].append(written - begin)
            seconds["raw read"].append(time.perf_counter() - written)
            raw.empty()
            begin = time.perf_counter()
            for start in range(0, len(names), batch):
                await store.write(blocks[start : start + batch])
            written = time.perf_counter()
            for start in range(0, len(names), batch):
                await store.read(names[start : start + batch])
            seconds["write"].append(written - begin)
            seconds["read"].append(time.perf_counter() - written)
    assert store.counters.hits == (rounds + 1) * len(names)
    await store.close()
    return [
        _row(f"{way}, {dtype}", seconds[way], seconds[f"raw {way}"], size * len(names))
        for way in ("write", "read")
    ]


def _row(metric: str, ours: list[float], raw: list[float], size: int) -> dict[str, Any]:
    # The first round warms both up.
    value = size / statistics.median(ours[1:]) / 2**30
    against = size / statistics.median(raw[1:]) / 2**30
    return {
        "metric": f"{metric}, {SESSION_TOKENS} tokens",
        "value": value,
        "unit": "GiB/s",
        "against": AGAINST,
        "against_value": against,
        "ratio": value / against,
        "goal": GOAL,
        "met": value / against >= GOAL,
    }


class RawSocket:
    """The least that can be done to move the same values."""

    def __init__(self, url: str, names: Sequence[BlockHash], values: Sequence[bytes]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(url.removeprefix("unix://"))
        self._keys = [name.hex().encode() for name in names]
        self._values = values
        self._reply = len(b"$%d\r\n" % len(values[0])) + len(values[0]) + 2
        self._memory = memoryview(bytearray(self._reply * len(values)))

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def empty(self) -> None:
        self._socket.sendall(b"FLUSHALL SYNC\r\n")
        self._receive(len(b"+OK\r\n"))

    def write(self) -> None:
        for key, value in zip(self._keys, self._values, strict=True):
            head = (len(key), key, len(value))
            self._socket.sendall(b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % head)
            self._socket.sendall(value)
            self._socket.sendall(b"\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(TTL_MS), TTL_MS))
        self._receive(len(b"+OK\r\n") * len(self._keys))

    def read(self) -> None:
        commands = (b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key) for key in self._keys)
        self._socket.sendall(b"".join(commands))
        self._receive(self._reply * len(self._keys))

    def _receive(self, count: int) -> None:
        received = 0
        while received < count:
            received += self._socket.recv_into(self._memory[received:count])
