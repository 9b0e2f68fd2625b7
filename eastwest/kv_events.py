"""How a worker tells routers which blocks it has, and which the store has."""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.blocks import BlockHash
from eastwest.types import Tier


@dataclass(frozen=True, slots=True)
class TierBlocks:
    """Named blocks on one tier."""

    tier: Tier
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class KvEvents:
    """Which blocks a worker has come to hold, and to hold no more. Hints for placement.

    In this order: all blocks of the tiers in `cleared` are gone, then those in `removed`, and
    then those in `stored` are there. EXTERNAL blocks are what the worker has written to the
    offline store or found there, or not found there; the store's own evictions nobody tells.

    sequence: one more than that of the events before, from 1, whichever router they go to; a
    worker that has lost some skips a number. whole: a part of all that the worker holds, as of
    `sequence`, which all parts repeat; the first part clears. A router gets that when it connects
    and when it asks for it.
    """

    sequence: int
    cleared: tuple[Tier, ...] = ()
    removed: tuple[TierBlocks, ...] = ()
    stored: tuple[TierBlocks, ...] = ()
    whole: bool = False
