"""What one push sends: regions in the receiver's blocks and dtype, read from this rank's blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xxhash import xxh3_64, xxh3_64_intdigest

from eastwest.messages import Ticket
from eastwest.paged_kv import Bytes, PagedKV
from eastwest.ports import Buffer, KVMemory
from kv_transfer.convert import convert
from kv_transfer.digest import long_enough, stretches
from kv_transfer.plan import Region, tokens_of


class PushedKV:
    """The KV that `kv` holds of the sequence that `ticket` asks for. Is an `Outgoing`.

    blocks: this rank's, from the sequence's first token on.
    """

    def __init__(self, kv: KVMemory, blocks: Sequence[int], ticket: Ticket) -> None:
        self._kv = kv
        self._blocks = blocks
        self._ticket = ticket

    @property
    def converts(self) -> bool:
        """See `Outgoing.converts`."""
        return self._kv.spec.dtype != self._ticket.kv.dtype

    def read(self, region: Region) -> Buffer:
        """See `Outgoing.read`."""
        blocks, tokens = self._held(region)
        payload = self._kv.read(blocks, region.layers, region.heads, tokens)
        shape = (len(region.layers), len(region.heads), len(tokens))
        return convert(payload, self._kv.spec, self._ticket.kv, shape)

    def parts(self, region: Region) -> Sequence[Buffer]:
        """See `Outgoing.parts`."""
        kv = self._kv
        if isinstance(kv, PagedKV) and kv.spec == self._ticket.kv:
            blocks, tokens = self._held(region)
            if parts := stretches(kv, blocks, region, tokens):
                return parts
        return [memoryview(self.read(region)).cast("B")]

    def copy_to(self, pool: PagedKV, blocks: tuple[int, ...], region: Region, seed: int) -> int:
        """See `Outgoing.copy_to`."""
        own, tokens = self._held(region)
        theirs = range(len(tokens))
        kv = self._kv
        if isinstance(kv, PagedKV) and kv.spec == pool.spec:
            pairs = list(_runs(list(kv.slots(own, tokens)), list(pool.slots(blocks, theirs))))
            if long_enough(kv, pairs):
                state = xxh3_64(seed=seed)
                for source, target in _stretches(kv, pool, region, pairs):
                    target[...] = source
                    # What has just been read is still in the cache.
                    state.update(source.data)
                return state.intdigest()
        payload = self.read(region)
        pool.write(blocks, region.layers, region.heads, payload, theirs)
        return xxh3_64_intdigest(payload, seed)

    def _held(self, region: Region) -> tuple[Sequence[int], range]:
        """This rank's blocks that hold a region, and where in them its tokens are."""
        tokens = tokens_of(region.blocks, self._ticket.block_tokens, self._ticket.num_tokens)
        size = self._kv.block_tokens
        first = tokens.start // size
        blocks = self._blocks[first : -(-tokens.stop // size)]
        return blocks, range(tokens.start - first * size, tokens.stop - first * size)


def _runs(
    ours: list[tuple[int, int, int]], theirs: list[tuple[int, int, int]]
) -> Iterator[tuple[int, int, int]]:
    """``(our slot, their slot, count)`` of the runs that are consecutive on both sides, of
    ``(index, first slot, count)`` of each side's own."""
    i = j = 0
    while i < len(ours) and j < len(theirs):
        (a, our_slot, n), (b, their_slot, m) = ours[i], theirs[j]
        start, stop = max(a, b), min(a + n, b + m)
        yield our_slot + start - a, their_slot + start - b, stop - start
        i += stop == a + n
        j += stop == b + m


def _stretches(
    kv: PagedKV, pool: PagedKV, region: Region, runs: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[Bytes, Bytes]]:
    """Contiguous pieces of both pools that correspond, in canonical order."""
    for layer in region.layers:
        for plane, their_plane in zip(kv.planes, pool.planes, strict=True):
            source = plane[layer - kv.shard.layers.start]
            target = their_plane[layer - pool.shard.layers.start]
            for head in region.heads:
                ours = source[head - kv.shard.heads.start]
                theirs = target[head - pool.shard.heads.start]
                for at, their_at, count in runs:
                    yield ours[at : at + count], theirs[their_at : their_at + count]
