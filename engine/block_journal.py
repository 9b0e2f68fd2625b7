"""What KV events are made of: how the named blocks of a replica have changed, in numbered batches.

Changes are gathered until the control stream takes them. Of several changes of one block only the
last counts, since who is told of a batch has been told of all before it. Where too many gather,
they are dropped and a number is skipped, so that routers notice and ask for the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from eastwest.blocks import BlockHash
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.types import Tier

T = TypeVar("T")

HASHES_MAX = 4096  # of one batch
CHANGES_MAX = 1 << 16  # gathered at once


class BlockJournal:
    """Told of changes by the block pool and by whoever moves blocks to and from the store."""

    def __init__(self, changes_max: int = CHANGES_MAX) -> None:
        self.sequence = 0
        self._changes_max = changes_max
        # Whether the block is there now.
        self._changes: dict[tuple[Tier, BlockHash], bool] = {}

    def stored(self, hashes: Iterable[BlockHash], tier: Tier = Tier.DEVICE) -> None:
        """The tier has these blocks."""
        self._note(hashes, tier, there=True)

    def removed(self, hashes: Iterable[BlockHash], tier: Tier = Tier.DEVICE) -> None:
        """The tier has these blocks no more, or not."""
        self._note(hashes, tier, there=False)

    def take(self) -> list[KvEvents]:
        """All changes that nobody has taken yet, numbered on; empty where there are none."""
        changes, self._changes = self._changes, {}
        batches = []
        for batch in _batches(changes.items()):
            self.sequence += 1
            gone = [key for key, there in batch if not there]
            here = [key for key, there in batch if there]
            events = KvEvents(self.sequence, removed=_by_tier(gone), stored=_by_tier(here))
            batches.append(events)
        return batches

    def whole(self, hashes: Iterable[BlockHash]) -> list[KvEvents]:
        """All blocks of the device, as parts for a router that knows nothing of them. Changes that
        nobody has taken yet may be in them; that they come again does no harm."""
        parts = [KvEvents(self.sequence, cleared=(Tier.DEVICE, Tier.HOST), whole=True)]
        for batch in _batches(hashes):
            blocks = TierBlocks(Tier.DEVICE, tuple(batch))
            parts.append(KvEvents(self.sequence, stored=(blocks,), whole=True))
        return parts

    def _note(self, hashes: Iterable[BlockHash], tier: Tier, *, there: bool) -> None:
        for block_hash in hashes:
            self._changes[tier, block_hash] = there
        if len(self._changes) > self._changes_max:
            self._changes.clear()
            self.sequence += 1


def _by_tier(keys: Sequence[tuple[Tier, BlockHash]]) -> tuple[TierBlocks, ...]:
    tiers = {tier: tuple(h for t, h in keys if t is tier) for tier in Tier}
    return tuple(TierBlocks(tier, hashes) for tier, hashes in tiers.items() if hashes)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, HASHES_MAX)):
        yield batch
