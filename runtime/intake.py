"""Takes blocks for a prompt, with as much of its KV in them as can be had.

Room is given in order of arrival. Where there is none, `make_room` is asked for some; after that,
owners wait until another one ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from eastwest.blocks import BlockHash
from eastwest.clock import Clock
from eastwest.errors import InvalidArgument, Overloaded
from eastwest.ports import BlockStore, ReplicaKV
from kv_transfer.ledger import Owner
from runtime.holdings import Holdings, Taken
from runtime.noted_store import NotedStore
from runtime.stored_prefix import load_stored


class Filled(NamedTuple):
    """So many blocks were loaded, which took so long; 0 where nothing was asked for."""

    blocks: int
    load_ns: int


class Intake:
    """One for each phase of a replica, so that neither waits in the other's queue.

    make_room: frees what rests, a piece at a time; False where nothing does.
    """

    def __init__(
        self,
        *,
        kv: ReplicaKV,
        holdings: Holdings,
        store: BlockStore | None,
        lease_ns: int,
        clock: Clock,
        make_room: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._kv = kv
        self._holdings = holdings
        self._stored = None if store is None else NotedStore(store, holdings)
        self._lease_ns = lease_ns
        self._clock = clock
        self._make_room = make_room
        self._turn = asyncio.Lock()

    def check_fits(self, what: str, total: int) -> None:
        """Raise `InvalidArgument` where `total` blocks could never be had. what: "x needs"."""
        most = self._holdings.pool.group_blocks
        if total > most:
            raise InvalidArgument(f"{what} {total} KV blocks; one sequence can have {most} here")

    async def take(
        self, owner: Owner, router_id: str, hashes: Sequence[BlockHash], total: int
    ) -> Taken:
        """`total` blocks under a lease, as soon as there is room; the longest cached prefix of
        `hashes` is shared. Cancelling has taken nothing."""
        async with self._turn:
            while True:
                try:
                    return self._holdings.take(
                        owner,
                        hashes,
                        total,
                        router_id=router_id,
                        lease_until_ns=self._clock.now_ns() + self._lease_ns,
                    )
                except Overloaded:
                    if self._make_room is None or not await self._make_room():
                        await self._holdings.wait_change()

    async def fill(self, taken: Taken, hashes: Sequence[BlockHash]) -> Filled:
        """Read what is stored of `hashes` into the blocks behind the shared ones.

        However it ends, nothing touches the blocks afterwards.
        """
        missing, blocks = hashes[taken.shared :], taken.blocks[taken.shared : len(hashes)]
        asked_ns = self._clock.now_ns()
        loaded = await load_stored(self._stored, self._kv, missing, blocks)
        self._holdings.publish(blocks[:loaded], missing[:loaded])
        asked = self._stored is not None and bool(missing)
        return Filled(loaded, self._clock.now_ns() - asked_ns if asked else 0)
