"""Blocks in this process, by the same contract as in Redis; for tests and the simulator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from eastwest.blocks import BlockHash
from eastwest.clock import Clock, SystemClock, ns
from eastwest.ports import Buffer
from kv_store.codec import check_length
from kv_store.guard import StoreCounters


class MemoryBlockStore:
    """Implements `eastwest.ports.BlockStore` within `bytes_max`; least recently used leave.

    block_bytes: the length that every block must have; None accepts any.
    """

    def __init__(
        self,
        bytes_max: int,
        *,
        block_bytes: int | None = None,
        ttl_s: float = 86400.0,
        clock: Clock | None = None,
    ) -> None:
        self._bytes_max = bytes_max
        self._block_bytes = block_bytes
        self._ttl_ns = ns(ttl_s)
        self._clock = clock or SystemClock()
        self._blocks: OrderedDict[BlockHash, tuple[bytes, int]] = OrderedDict()
        self._bytes = 0
        self.counters = StoreCounters()
        self.available = True

    async def match(self, hashes: Sequence[BlockHash]) -> int:
        return len(self._prefix(hashes))

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        blocks = self._prefix(hashes)
        for name in hashes[: len(blocks)]:
            self._blocks.move_to_end(name)
        self.counters.hits += len(blocks)
        self.counters.misses += len(hashes) - len(blocks)
        self.counters.bytes_read += sum(map(len, blocks))
        return blocks

    async def write(self, blocks: Sequence[tuple[BlockHash, Buffer]]) -> int:
        if self._block_bytes is not None:
            for _, payload in blocks:
                check_length(self._block_bytes, payload)
        written = 0
        for name, payload in blocks:
            if not self._prefix([name]):
                self._drop(name)
                self._blocks[name] = bytes(payload), 0
                self._bytes += len(payload)
                written += len(payload)
            self._renew(name)
            while self._bytes > self._bytes_max:
                self._drop(next(iter(self._blocks)))
        self.counters.bytes_written += written
        return written

    async def touch(self, hashes: Sequence[BlockHash]) -> None:
        for name in hashes:
            if self._prefix([name]):
                self._renew(name)

    async def erase(self, hashes: Sequence[BlockHash]) -> None:
        for name in hashes:
            self._drop(name)

    async def close(self) -> None:
        self._blocks.clear()
        self._bytes = 0

    def _prefix(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        now_ns = self._clock.now_ns()
        found: list[Buffer] = []
        for name in hashes:
            data, expires_ns = self._blocks.get(name, (b"", 0))
            if now_ns >= expires_ns:
                break
            found.append(data)
        return found

    def _renew(self, name: BlockHash) -> None:
        data, _ = self._blocks[name]
        self._blocks[name] = data, self._clock.now_ns() + self._ttl_ns
        self._blocks.move_to_end(name)

    def _drop(self, name: BlockHash) -> None:
        data, _ = self._blocks.pop(name, (b"", 0))
        self._bytes -= len(data)
