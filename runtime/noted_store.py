"""The offline store of a replica, whose routers hear what was found there and what was not."""

from __future__ import annotations

from collections.abc import Sequence

from eastwest.blocks import BlockHash
from eastwest.ports import BlockStore, Buffer
from runtime.holdings import Holdings


class NotedStore:
    """Is a `BlockSource`."""

    def __init__(self, store: BlockStore, holdings: Holdings) -> None:
        self._store = store
        self._holdings = holdings

    async def match(self, hashes: Sequence[BlockHash]) -> int:
        """See the port."""
        found = await self._store.match(hashes)
        self._holdings.note_stored(hashes[:found], hashes[found : found + 1])
        return found

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        """See the port."""
        payloads = await self._store.read(hashes)
        got = len(payloads)
        self._holdings.note_stored((), hashes[got : got + 1])
        return payloads

    async def touch(self, hashes: Sequence[BlockHash]) -> None:
        """See the port."""
        await self._store.touch(hashes)
