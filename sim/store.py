"""SIMULATED offline store: blocks without bytes, at a bandwidth that all replicas share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from eastwest.blocks import BlockHash
from eastwest.ports import Buffer


class SimulatedStore:
    """Is a `BlockStore`. latency_s: of each question. It forgets nothing."""

    def __init__(self, bytes_per_s: float, latency_s: float, block_bytes: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._latency_s = latency_s
        self._block_bytes = block_bytes
        self._blocks: dict[BlockHash, None] = {}
        self._free_at_s = 0.0
        self.read_blocks = 0

    async def match(self, hashes: Sequence[BlockHash]) -> int:
        await self._move(0)
        return self._leading(hashes)

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        found = self._leading(hashes)
        await self._move(found)
        self.read_blocks += found
        return [b""] * found

    async def write(self, blocks: Sequence[tuple[BlockHash, Buffer]]) -> int:
        fresh = [name for name, _ in blocks if name not in self._blocks]
        await self._move(len(fresh))
        self._blocks.update(dict.fromkeys(fresh))
        return len(fresh) * self._block_bytes

    async def touch(self, hashes: Sequence[BlockHash]) -> None:
        await self._move(0)

    async def erase(self, hashes: Sequence[BlockHash]) -> None:
        await self._move(0)
        for name in hashes:
            self._blocks.pop(name, None)

    async def close(self) -> None:
        """It belongs to all replicas."""

    def _leading(self, hashes: Sequence[BlockHash]) -> int:
        return next((i for i, name in enumerate(hashes) if name not in self._blocks), len(hashes))

    async def _move(self, blocks: int) -> None:
        """Blocks take their turn on the link."""
        now_s, wait_s = asyncio.get_running_loop().time(), 0.0
        if blocks:
            taken_s = blocks * self._block_bytes / self._bytes_per_s
            self._free_at_s = max(now_s, self._free_at_s) + taken_s
            wait_s = self._free_at_s - now_s
        await asyncio.sleep(wait_s + self._latency_s)
