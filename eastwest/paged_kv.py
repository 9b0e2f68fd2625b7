"""Paged KV in host memory: where each key and value row lies, read and written in canonical form.

One flat buffer of bytes, ``[layer][K, V][head][slot][row]`` (`slot` = block * block_tokens +
offset), which is the canonical order with slots in the place of tokens. So a run of consecutive
blocks is one strided copy whose inner pieces are whole stretches of tokens, and whoever knows
spec, shard and size can find any row in a buffer that another process has mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from eastwest.errors import InvalidArgument
from eastwest.layout import KVSpec, Shard
from eastwest.ports import Buffer

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.intp]
# Indices of blocks; an array of them is not converted again for each use.
Blocks = Sequence[int] | Indices

# More runs of consecutive blocks than so many for each layer and head are moved block by block.
_SLICES_MAX = 2
_BEGIN = np.ones(1, np.bool_)


def pool_bytes(spec: KVSpec, shard: Shard, num_blocks: int, block_tokens: int) -> int:
    """Size of the buffer that a `PagedKV` needs."""
    return spec.slice_bytes(num_blocks * block_tokens, len(shard.layers), len(shard.heads))


def block_runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """``(first block, count)`` of the maximal runs of consecutive blocks, in order."""
    ids = np.array(blocks, np.intp)
    cuts = (np.flatnonzero(ids[1:] - ids[:-1] != 1) + 1).tolist()
    for start, stop in pairwise((0, *cuts, len(ids))):
        if start < stop:
            yield blocks[start], stop - start


@dataclass(frozen=True, slots=True)
class SlotRuns:
    """Tokens that follow each other, as runs of consecutive slots, in order.

    starts: where each run begins among the tokens, 0 first. slots: its first slot. total: of all
    the tokens.
    """

    starts: Indices
    slots: Indices
    total: int

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """``(where among the tokens, first slot, count)`` of each run."""
        starts = self.starts.tolist()
        counts = [stop - start for start, stop in pairwise((*starts, self.total))]
        return zip(starts, self.slots.tolist(), counts, strict=True)

    def cut(self, starts: Indices) -> SlotRuns:
        """The same tokens in runs that begin at `starts`, among which are all of its own."""
        run = np.searchsorted(self.starts, starts, "right") - 1
        return SlotRuns(starts, self.slots[run] + starts - self.starts[run], self.total)


def matched(ours: SlotRuns, theirs: SlotRuns) -> tuple[SlotRuns, SlotRuns]:
    """The same tokens in two pools, in runs that are consecutive in both."""
    starts = np.union1d(ours.starts, theirs.starts)
    return ours.cut(starts), theirs.cut(starts)


class PagedKV:
    """`eastwest.ports.KVMemory` over `buffer`, which stays the caller's.

    planes: ``[layer][head][slot][bytes of a row]`` views of the shard's keys and, where there are
    any, values.
    """

    def __init__(
        self, buffer: Buffer, spec: KVSpec, shard: Shard, num_blocks: int, block_tokens: int
    ) -> None:
        self.spec = spec
        self.shard = shard
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        size = pool_bytes(spec, shard, num_blocks, block_tokens)
        flat = np.frombuffer(buffer, np.uint8)
        assert flat.nbytes == size, f"{flat.nbytes} bytes for a pool of {size}"
        layers, heads, slots = len(shard.layers), len(shard.heads), num_blocks * block_tokens
        by_layer = flat.reshape(layers, -1)
        split = heads * slots * spec.key_bytes
        keys = by_layer[:, :split].reshape(layers, heads, slots, spec.key_bytes)
        self.planes: tuple[Bytes, ...] = (keys,)
        if spec.value_bytes:
            values = by_layer[:, split:].reshape(layers, heads, slots, spec.value_bytes)
            self.planes = (keys, values)

    def read(
        self, blocks: Blocks, layers: range, heads: range, tokens: range | None = None
    ) -> Buffer:
        """See `KVMemory.read`."""
        run = np.empty(self.run_bytes(blocks, layers, heads, tokens), np.uint8)
        for part, held, index in self._pieces(run, blocks, layers, heads, tokens):
            if index is None:
                part[...] = held
            else:
                np.take(held, index, out=part, mode="clip")
        return run.data

    def write(
        self,
        blocks: Blocks,
        layers: range,
        heads: range,
        payload: Buffer,
        tokens: range | None = None,
    ) -> None:
        """See `KVMemory.write`. `payload` is not kept."""
        run = np.frombuffer(payload, np.uint8)
        expected = self.run_bytes(blocks, layers, heads, tokens)
        if run.nbytes != expected:
            raise InvalidArgument(
                f"a canonical run of {len(blocks)} blocks, {len(layers)} layers and {len(heads)} "
                f"heads has {run.nbytes} bytes; allowed: exactly {expected}"
            )
        for part, held, index in self._pieces(run, blocks, layers, heads, tokens):
            if index is None:
                held[...] = part
            else:
                held[index] = part

    def run_bytes(
        self, blocks: Blocks, layers: range, heads: range, tokens: range | None = None
    ) -> int:
        """Bytes of a canonical run, after checking that this rank holds it."""
        held = len(blocks) * self.block_tokens
        for name, wanted, whole in (
            ("blocks", blocks, range(self.num_blocks)),
            ("layers", layers, self.shard.layers),
            ("heads", heads, self.shard.heads),
            ("tokens", range(held) if tokens is None else tokens, range(held)),
        ):
            if not len(wanted) or not all(end in whole for end in _ends(wanted)):
                raise InvalidArgument(
                    f"{name} are {list(wanted)[:8]}; allowed: some of {whole.start} to "
                    f"{whole.stop - 1}"
                )
        count = held if tokens is None else len(tokens)
        return self.spec.slice_bytes(count, len(layers), len(heads))

    def _pieces(
        self,
        run: Bytes,
        blocks: Blocks,
        layers: range,
        heads: range,
        tokens: range | None = None,
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], Indices | None]]:
        """Views of a canonical `run` beside views of the places in the pool that it describes.

        Without an index, both have shape ``[layer][head][token][bytes of a row]``: there is such
        a pair for each plane and run of consecutive slots. With one, the first is ``[block]`` of
        one layer and head, and the index says which blocks of the second, ``[any block]``, these
        are: blocks that lie far and wide are moved faster so.
        """
        wanted = tokens if tokens is not None else range(len(blocks) * self.block_tokens)
        by_layer = run.reshape(len(layers), -1)
        places = (_inside(layers, self.shard.layers), _inside(heads, self.shard.heads))
        first, stop = -(-wanted.start // self.block_tokens), wanted.stop // self.block_tokens
        whole, edges = range(first * self.block_tokens, stop * self.block_tokens), [wanted]
        index = np.asarray(blocks[first:stop], np.intp)
        scattered = np.count_nonzero(index[1:] - index[:-1] != 1) > _SLICES_MAX * len(layers) * len(
            heads
        )
        if scattered:
            edges = [range(wanted.start, whole.start), range(whole.stop, wanted.stop)]
        slots = [
            (edge.start - wanted.start + at, slot, count)
            for edge in edges
            for at, slot, count in self.slots(blocks, edge)
        ]
        at = 0
        for plane in self.planes:
            row = plane.shape[-1]
            size = len(heads) * len(wanted) * row
            part = by_layer[:, at : at + size].reshape(len(layers), len(heads), len(wanted), row)
            held = plane[places]
            for first, slot, count in slots:
                yield part[:, :, first : first + count], held[:, :, slot : slot + count], None
            if scattered:
                inside = part[:, :, whole.start - wanted.start : whole.stop - wanted.start]
                for i, j in np.ndindex(len(layers), len(heads)):
                    yield self._by_block(inside[i, j]), self._by_block(held[i, j]), index
            at += size

    def _by_block(self, rows: Bytes) -> npt.NDArray[np.void]:
        """``[block]`` view of consecutive rows ``[token][bytes of a row]``."""
        size = self.block_tokens * rows.shape[-1]
        return rows.reshape(-1, size).view(np.dtype((np.void, size)))[:, 0]

    def slots(self, blocks: Blocks, tokens: range) -> SlotRuns:
        """Where some tokens of the sequence that lies in `blocks` are."""
        size = self.block_tokens
        begin, stop = tokens.start // size, -(-tokens.stop // size)
        ids = np.asarray(blocks[begin:stop] if tokens else (), np.intp)
        first = np.flatnonzero(np.concatenate((_BEGIN[: len(ids)], ids[1:] - ids[:-1] != 1)))
        starts, slots = first * size, ids[first] * size
        # The first run begins inside its block, the others where theirs do.
        skipped = tokens.start - begin * size
        starts[1:] -= skipped
        slots[:1] += skipped
        return SlotRuns(starts, slots, len(tokens))


def _ends(indices: Blocks) -> tuple[int, int]:
    """The least and the greatest of some."""
    if isinstance(indices, np.ndarray):
        return int(indices.min()), int(indices.max())
    if isinstance(indices, range):  # ascending
        return indices[0], indices[-1]
    return min(indices), max(indices)


def _inside(part: range, whole: range) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)
