"""What of one transfer has arrived at one receiving rank.

A map of booleans over (layer, head, block): marking is idempotent, so frames may repeat, overlap
and come in any order. One byte a cell, fixed at construction.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kv_transfer.plan import Region


class Coverage:
    """Cells of the box `expected`; every region given must lie inside it."""

    def __init__(self, expected: Region) -> None:
        self._origin = (expected.layers.start, expected.heads.start, expected.blocks.start)
        shape = (len(expected.layers), len(expected.heads), len(expected.blocks))
        self._present: npt.NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
        self._remaining = self._present.size

    @property
    def complete(self) -> bool:
        return self._remaining == 0

    def contains(self, layers: range, blocks: range, heads: range) -> bool:
        """Whether all of a region has arrived."""
        return bool(self._present[self._index(layers, heads, blocks)].all())

    def touches(self, region: Region) -> bool:
        """Whether any of a region has arrived."""
        return bool(self._present[self._index(region.layers, region.heads, region.blocks)].any())

    def add(self, layers: range, blocks: range, heads: range) -> bool:
        """Mark a region as arrived; false where all of it had arrived before."""
        cells = self._present[self._index(layers, heads, blocks)]
        new = cells.size - int(np.count_nonzero(cells))
        if new:
            cells[...] = True
            self._remaining -= new
        return new > 0

    def missing(self, limit: int = 256) -> list[Region]:
        """Disjoint regions of what has not arrived: all of it, or the first `limit` regions."""
        present = self._present.copy()
        regions: list[Region] = []
        while len(regions) < limit and not present.all():
            layer, head, block = (int(i) for i in np.unravel_index(present.argmin(), present.shape))
            blocks = _extend(present[layer, head], block)
            heads = _extend(np.logical_or.reduce(present[layer, :, blocks], axis=1), head)
            layers = _extend(np.logical_or.reduce(present[:, heads, blocks], axis=(1, 2)), layer)
            present[layers, heads, blocks] = True
            regions.append(self._region(layers, blocks, heads))
        return regions

    def _index(self, layers: range, heads: range, blocks: range) -> tuple[slice, slice, slice]:
        layer, head, block = self._origin
        index = (
            slice(layers.start - layer, layers.stop - layer),
            slice(heads.start - head, heads.stop - head),
            slice(blocks.start - block, blocks.stop - block),
        )
        for part, size in zip(index, self._present.shape, strict=True):
            assert 0 <= part.start <= part.stop <= size, f"{part} is outside {size} places"
        return index

    def _region(self, layers: slice, blocks: slice, heads: slice) -> Region:
        layer, head, block = self._origin
        return Region(_shift(layers, layer), _shift(blocks, block), _shift(heads, head))


def _extend(taken: npt.NDArray[np.bool_], start: int) -> slice:
    """The longest run of False from `start` on."""
    after = taken[start:]
    return slice(start, start + (int(after.argmax()) if after.any() else len(after)))


def _shift(part: slice, origin: int) -> range:
    return range(part.start + origin, part.stop + origin)
