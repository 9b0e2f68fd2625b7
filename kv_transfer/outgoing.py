"""What one push sends: regions in the receiver's blocks and dtype, read from this rank's blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from eastwest.messages import Ticket
from eastwest.paged_kv import Blocks, Bytes, PagedKV, SlotRuns, matched
from eastwest.ports import Buffer, KVMemory
from kv_transfer.convert import convert
from kv_transfer.digest import long_enough, stretches
from kv_transfer.plan import Region, tokens_of

_MATCHED_MAX = 256
# What is copied before it is hashed: less than the cache of a core, and long enough for the C
# library's fastest copy.
_PIECE_BYTES = 1 << 19


class PushedKV:
    """The KV that `kv` holds of the sequence that `ticket` asks for. Is an `Outgoing`.

    blocks: this rank's, from the sequence's first token on.
    """

    def __init__(self, kv: KVMemory, blocks: Sequence[int], ticket: Ticket) -> None:
        self._kv = kv
        self._blocks = blocks
        self._ids = np.array(blocks, np.intp)
        # By blocks of the sequence; the same for every layer. Oldest first.
        self._matched: dict[range, tuple[SlotRuns, SlotRuns]] = {}
        self._ticket = ticket

    @property
    def converts(self) -> bool:
        """See `Outgoing.converts`."""
        return self._kv.spec.dtype != self._ticket.kv.dtype

    def read(self, region: Region) -> Buffer:
        """See `Outgoing.read`."""
        held, tokens = self._held(region)
        kv = self._kv
        if isinstance(kv, PagedKV):
            payload = kv.read(self._ids[held], region.layers, region.heads, tokens)
        else:
            payload = kv.read(self._blocks[held], region.layers, region.heads, tokens)
        shape = (len(region.layers), len(region.heads), len(tokens))
        return convert(payload, kv.spec, self._ticket.kv, shape)

    def parts(self, region: Region) -> Sequence[Buffer]:
        """See `Outgoing.parts`."""
        kv = self._kv
        if isinstance(kv, PagedKV) and kv.spec == self._ticket.kv:
            held, tokens = self._held(region)
            if parts := stretches(kv, self._ids[held], region, tokens):
                return parts
        return [memoryview(self.read(region)).cast("B")]

    def copy_to(self, pool: PagedKV, blocks: Blocks, region: Region, seed: int) -> int:
        """See `Outgoing.copy_to`."""
        held, tokens = self._held(region)
        theirs = range(len(tokens))
        kv = self._kv
        if isinstance(kv, PagedKV) and kv.spec == pool.spec:
            runs = self._matched.get(region.blocks)
            if runs is None:
                runs = matched(kv.slots(self._ids[held], tokens), pool.slots(blocks, theirs))
                self._matched[region.blocks] = runs
                if len(self._matched) > _MATCHED_MAX:
                    del self._matched[next(iter(self._matched))]
            if long_enough(kv, runs[0]):
                state = xxh3_64(seed=seed)
                for source, target in _stretches(kv, pool, region, *runs):
                    target[...] = source
                    # What has just been read is still in the cache.
                    state.update(source.data)
                return state.intdigest()
        payload = self.read(region)
        pool.write(blocks, region.layers, region.heads, payload, theirs)
        return xxh3_64_intdigest(payload, seed)

    def _held(self, region: Region) -> tuple[slice, range]:
        """Which of this rank's blocks hold a region, and where in them its tokens are."""
        tokens = tokens_of(region.blocks, self._ticket.block_tokens, self._ticket.num_tokens)
        size = self._kv.block_tokens
        first = tokens.start // size
        held = slice(first, -(-tokens.stop // size))
        return held, range(tokens.start - first * size, tokens.stop - first * size)


def _stretches(
    kv: PagedKV, pool: PagedKV, region: Region, ours: SlotRuns, theirs: SlotRuns
) -> Iterator[tuple[Bytes, Bytes]]:
    """Contiguous pieces of both pools that correspond, in canonical order. The runs match."""
    step = max(1, _PIECE_BYTES // kv.spec.key_bytes)
    runs = [
        (slice(at + i, at + min(i + step, count)), slice(to + i, to + min(i + step, count)))
        for (_, at, count), (_, to, _) in zip(ours, theirs, strict=True)
        for i in range(0, count, step)
    ]
    for layer in region.layers:
        for plane, their_plane in zip(kv.planes, pool.planes, strict=True):
            source = plane[layer - kv.shard.layers.start]
            target = their_plane[layer - pool.shard.layers.start]
            for head in region.heads:
                rows = source[head - kv.shard.heads.start]
                their_rows = target[head - pool.shard.heads.start]
                for run, their_run in runs:
                    yield rows[run], their_rows[their_run]
