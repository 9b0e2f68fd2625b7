"""A paged KV in plain numpy: `KVMemory` for tests and benchmarks that need no engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from eastwest.errors import InvalidArgument
from eastwest.layout import KVSpec, Shard
from eastwest.ports import Buffer

Bytes = npt.NDArray[np.uint8]


class ArrayKVMemory:
    """Holds bytes and computes nothing.

    keys, values: ``[layer][head][block][token][bytes of a dim row]`` of the shard, zeros at first.
    """

    def __init__(self, spec: KVSpec, shard: Shard, num_blocks: int, block_tokens: int) -> None:
        self.spec = spec
        self.shard = shard
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        shape = (len(shard.layers), len(shard.heads), num_blocks, block_tokens)
        self.keys: Bytes = np.zeros((*shape, spec.key_dim * spec.itemsize), np.uint8)
        self.values: Bytes = np.zeros((*shape, spec.value_dim * spec.itemsize), np.uint8)

    def fill(self, seed: int) -> None:
        """Random content everywhere."""
        rng = np.random.default_rng(seed)
        for array in (self.keys, self.values):
            array[...] = rng.integers(0, 256, array.shape, np.uint8)

    def read(self, blocks: Sequence[int], layers: range, heads: range) -> Buffer:
        """See `eastwest.ports.KVMemory`; scattered blocks cost one copy for each contiguous run."""
        out = np.empty(self._size(blocks, layers, heads), np.uint8)
        for run, held in self._pairs(out, blocks, layers, heads):
            run[...] = held
        return out.data

    def write(self, blocks: Sequence[int], layers: range, heads: range, payload: Buffer) -> None:
        """See `eastwest.ports.KVMemory`."""
        data = np.frombuffer(payload, np.uint8)
        expected = self._size(blocks, layers, heads)
        if data.nbytes != expected:
            raise InvalidArgument(f"payload has {data.nbytes} bytes; allowed: {expected}")
        for run, held in self._pairs(data, blocks, layers, heads):
            held[...] = run

    def _size(self, blocks: Sequence[int], layers: range, heads: range) -> int:
        return self.spec.slice_bytes(len(blocks) * self.block_tokens, len(layers), len(heads))

    def _pairs(
        self, data: Bytes, blocks: Sequence[int], layers: range, heads: range
    ) -> Iterator[tuple[Bytes, Bytes]]:
        """Views of canonical `data` beside views of the places that it describes."""
        index = (_inside(layers, self.shard.layers), _inside(heads, self.shard.heads))
        shape = (len(layers), len(heads), len(blocks), self.block_tokens)
        by_layer = data.reshape(len(layers), -1)
        split = by_layer.shape[1] * self.spec.key_dim // (self.spec.key_dim + self.spec.value_dim)
        parts = ((by_layer[:, :split], self.keys), (by_layer[:, split:], self.values))
        runs = list(_contiguous(blocks))
        for flat, array in parts:
            run = flat.reshape(*shape, array.shape[-1])
            held = array[index]
            for at, first, count in runs:
                yield run[:, :, at : at + count], held[:, :, first : first + count]


def _inside(part: range, whole: range) -> slice:
    assert whole.start <= part.start < part.stop <= whole.stop, f"{part} is outside {whole}"
    return slice(part.start - whole.start, part.stop - whole.start)


def _contiguous(blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of ascending neighbours: position in `blocks`, first block, length."""
    start = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[i - 1] + 1:
            yield start, blocks[start], i - start
            start = i
