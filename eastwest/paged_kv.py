"""Paged KV in host memory: where each key and value row lies, read and written in canonical form.

One flat buffer of bytes, ``[layer][K, V][head][slot][row]`` (`slot` = block * block_tokens +
offset), which is the canonical order with slots in the place of tokens. So a run of consecutive
blocks is one strided copy whose inner pieces are whole stretches of tokens, and whoever knows
spec, shard and size can find any row in a buffer that another process has mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from eastwest.errors import InvalidArgument
from eastwest.layout import KVSpec, Shard
from eastwest.ports import Buffer

Bytes = npt.NDArray[np.uint8]

# More runs of consecutive blocks than so many for each layer and head are moved block by block.
_SLICES_MAX = 2


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
        self, blocks: Sequence[int], layers: range, heads: range, tokens: range | None = None
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
        blocks: Sequence[int],
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
        self, blocks: Sequence[int], layers: range, heads: range, tokens: range | None = None
    ) -> int:
        """Bytes of a canonical run, after checking that this rank holds it."""
        held = len(blocks) * self.block_tokens
        for name, wanted, whole in (
            ("blocks", blocks, range(self.num_blocks)),
            ("layers", layers, self.shard.layers),
            ("heads", heads, self.shard.heads),
            ("tokens", range(held) if tokens is None else tokens, range(held)),
        ):
            if not wanted or not all(end in whole for end in _ends(wanted)):
                raise InvalidArgument(
                    f"{name} are {list(wanted)[:8]}; allowed: some of {whole.start} to "
                    f"{whole.stop - 1}"
                )
        count = held if tokens is None else len(tokens)
        return self.spec.slice_bytes(count, len(layers), len(heads))

    def _pieces(
        self,
        run: Bytes,
        blocks: Sequence[int],
        layers: range,
        heads: range,
        tokens: range | None = None,
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.intp] | None]]:
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
        index = np.array(blocks[first:stop], np.intp)
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

    def slots(self, blocks: Sequence[int], tokens: range) -> Iterator[tuple[int, int, int]]:
        """``(index within tokens, first slot, count)`` of each run of consecutive slots."""
        size = self.block_tokens
        begin = tokens.start // size
        for first, count in block_runs(blocks[begin : -(-tokens.stop // size)]):
            here = range(begin * size, (begin + count) * size)
            start, stop = max(here.start, tokens.start), min(here.stop, tokens.stop)
            if start < stop:
                yield start - tokens.start, first * size + start - here.start, stop - start
            begin += count


def _ends(indices: Sequence[int]) -> tuple[int, int]:
    """The least and the greatest of some."""
    if isinstance(indices, range):  # ascending
        return indices[0], indices[-1]
    return min(indices), max(indices)


def _inside(part: range, whole: range) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)
