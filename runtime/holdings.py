"""Who holds which KV blocks of a replica: the block pool and the ledger, changed together.

Each call here changes both or neither, so the auditor's two sources can only drift apart through
a defect. Everything runs on the worker's event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from eastwest.blocks import BlockHash
from eastwest.kv_events import KvEvents
from eastwest.types import Tier
from engine.block_groups import BlockGroups
from kv_transfer.auditor import Audit, audit
from kv_transfer.ledger import Ledger, Owner, OwnerKind


@dataclass(frozen=True, slots=True)
class Taken:
    """Blocks of one owner: `shared` leading ones hold KV already, the others are empty."""

    blocks: tuple[int, ...]
    shared: int


class Holdings:
    """Takes, passes on and releases blocks on behalf of named owners."""

    def __init__(self, pool: BlockGroups) -> None:
        self.pool = pool
        self.ledger = Ledger()
        self._changed = asyncio.Event()
        self._leaving: set[Owner] = set()

    def take(
        self,
        owner: Owner,
        hashes: Sequence[BlockHash],
        total: int,
        *,
        router_id: str,
        lease_until_ns: int | None,
    ) -> Taken:
        """`total` blocks for `owner`, the longest cached prefix of `hashes` shared.

        Raises `Overloaded`, and has taken nothing, where the pool has not enough of them.
        """
        shared, fresh = self.pool.take(hashes, total)
        blocks = (*shared, *fresh)
        self.ledger.open(owner, blocks, router_id=router_id, lease_until_ns=lease_until_ns)
        return Taken(blocks, len(shared))

    def lend(self, owner: Owner, hashes: Sequence[BlockHash]) -> tuple[int, ...]:
        """The blocks of the longest cached prefix of `hashes`, kept for `owner` until it releases
        them; there may be none, which are released alike."""
        there = self.pool.match(hashes)
        return self.take(owner, hashes[:there], there, router_id="", lease_until_ns=None).blocks

    def publish(self, blocks: Sequence[int], hashes: Sequence[BlockHash]) -> None:
        """Name full blocks, so that later prompts can share them."""
        for block, block_hash in zip(blocks, hashes, strict=True):
            self.pool.publish(block, block_hash)

    def note_stored(self, hashes: Sequence[BlockHash], absent: Sequence[BlockHash] = ()) -> None:
        """The offline store has `hashes`, and none of `absent`."""
        self.pool.journal.stored(hashes, Tier.EXTERNAL)
        self.pool.journal.removed(absent, Tier.EXTERNAL)

    def kv_events(self) -> list[KvEvents]:
        """How named blocks have changed since the last call; each change is given once."""
        return self.pool.journal.take()

    def kv_whole(self) -> list[KvEvents]:
        """All named blocks, for a router that knows nothing of them."""
        return self.pool.journal.whole(self.pool.names())

    def pass_on(self, owner: Owner, successor: Owner, keep: int) -> tuple[int, ...]:
        """The first `keep` blocks of `owner` go to `successor`, without a lease; the others are
        released. Returns what was kept."""
        blocks = self.ledger.close(owner)
        kept, rest = blocks[:keep], blocks[keep:]
        self.ledger.open(successor, kept, lease_until_ns=None)
        self.pool.release(rest)
        self._notify()
        return kept

    def holds_for(self, request_id: str) -> bool:
        """Whether any blocks are held in the name of a request, if only of one that has ended."""
        kinds = (kind for kind in OwnerKind if kind is not OwnerKind.LOAN)
        return any(Owner(kind, request_id) in self.ledger for kind in kinds)

    def retire(self, owner: Owner) -> None:
        """`owner` has ended and will release as soon as nothing writes to its blocks any more.
        Without effect where it has taken none."""
        if owner in self.ledger:
            self._leaving.add(owner)

    @property
    def retiring(self) -> bool:
        """Whether an owner that has ended has still to release."""
        return bool(self._leaving)

    def release(self, owner: Owner) -> None:
        """End what `owner` holds. Named blocks stay cached, the others are free."""
        self._leaving.discard(owner)
        self.pool.release(self.ledger.close(owner))
        self._notify()

    async def wait_change(self) -> None:
        """Until some owner has released blocks."""
        self._changed.clear()
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()

    def audit(self, live: Collection[Owner]) -> Audit:
        """Compare the ledger with the pool's references and with the owners known to be alive."""
        return audit(
            self.ledger,
            self.pool.refcounts(),
            {*live, *self._leaving},
            num_blocks=self.pool.num_blocks,
            free_blocks=self.pool.free_blocks,
            cached_blocks=self.pool.cached_blocks,
        )
