"""The checksum of KV that lies in the blocks of a rank, as if it were a canonical payload."""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64, xxh3_64_intdigest

from eastwest.paged_kv import Blocks, PagedKV, SlotRuns
from eastwest.ports import KVMemory
from kv_transfer.plan import Region

# Stretches that are shorter on average cost more in calls than in being copied together first.
STRETCH_BYTES_MIN = 1 << 14


def digest(kv: KVMemory, blocks: Sequence[int], region: Region, tokens: range, seed: int) -> int:
    """xxh3_64 with `seed` of what ``kv.read`` of the region would give."""
    if isinstance(kv, PagedKV) and (parts := stretches(kv, blocks, region, tokens)):
        state = xxh3_64(seed=seed)
        for part in parts:
            state.update(part)
        return state.intdigest()
    return xxh3_64_intdigest(kv.read(blocks, region.layers, region.heads, tokens), seed)


def stretches(kv: PagedKV, blocks: Blocks, region: Region, tokens: range) -> list[memoryview]:
    """Where a region lies in the pool: flat pieces, in canonical order. None of them where they
    are too short to be worth it."""
    slots = kv.slots(blocks, tokens)
    if not long_enough(kv, slots):
        return []
    runs = [slice(slot, slot + count) for _, slot, count in slots]
    heads = [head - kv.shard.heads.start for head in region.heads]
    return [
        plane[layer - kv.shard.layers.start, head, run].reshape(-1).data
        for layer in region.layers
        for plane in kv.planes
        for head in heads
        for run in runs
    ]


def long_enough(kv: PagedKV, runs: SlotRuns) -> bool:
    """Whether runs of slots are used faster where they are than copied together."""
    return runs.total * kv.spec.key_bytes >= len(runs) * STRETCH_BYTES_MIN
