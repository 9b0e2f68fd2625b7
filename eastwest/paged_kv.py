"""Paged KV in host memory: where each key and value row lies, read and written in canonical form.

One flat buffer of bytes, ``[layer][K, V][head][slot][row]`` (`slot` = block * block_tokens +
offset), which is the canonical order with slots in the place of tokens. So a run of consecutive
blocks is one strided copy whose inner pieces are whole stretches of tokens, and whoever knows
spec, shard and size can find any row in a buffer that another process has mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from eastwest.errors import InvalidArgument
from eastwest.layout import KVSpec, Shard
from eastwest.ports import Buffer

Bytes = npt.NDArray[np.uint8]


def pool_bytes(spec: KVSpec, shard: Shard, num_blocks: int, block_tokens: int) -> int:
    """Size of the buffer that a `PagedKV` needs."""
    return spec.slice_bytes(num_blocks * block_tokens, len(shard.layers), len(shard.heads))


def block_runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """``(first block, count)`` of the maximal runs of consecutive blocks, in order."""
    first = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[i - 1] + 1:
            yield blocks[first], i - first
            first = i


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
        for part, held in self.pieces(run, blocks, layers, heads, tokens):
            part[...] = held
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
        for part, held in self.pieces(run, blocks, layers, heads, tokens):
            held[...] = part

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
            if not wanted or min(wanted) not in whole or max(wanted) not in whole:
                raise InvalidArgument(
                    f"{name} are {list(wanted)[:8]}; allowed: some of {whole.start} to "
                    f"{whole.stop - 1}"
                )
        count = held if tokens is None else len(tokens)
        return self.spec.slice_bytes(count, len(layers), len(heads))

    def pieces(
        self,
        run: Bytes,
        blocks: Sequence[int],
        layers: range,
        heads: range,
        tokens: range | None = None,
    ) -> Iterator[tuple[Bytes, Bytes]]:
        """Views of a canonical `run` beside views of the places in the pool that it describes.

        Each pair has shape ``[layer][head][token][bytes of a row]``; a pair for each plane and
        run of consecutive slots.
        """
        wanted = tokens if tokens is not None else range(len(blocks) * self.block_tokens)
        by_layer = run.reshape(len(layers), -1)
        index = (_inside(layers, self.shard.layers), _inside(heads, self.shard.heads))
        at = 0
        for plane in self.planes:
            row = plane.shape[-1]
            size = len(heads) * len(wanted) * row
            part = by_layer[:, at : at + size].reshape(len(layers), len(heads), len(wanted), row)
            held = plane[index]
            for first, slot, count in self.slots(blocks, wanted):
                yield part[:, :, first : first + count], held[:, :, slot : slot + count]
            at += size

    def slots(self, blocks: Sequence[int], tokens: range) -> Iterator[tuple[int, int, int]]:
        """``(index within tokens, first slot, count)`` of each run of consecutive slots."""
        begin = 0
        for first, count in block_runs(blocks):
            here = range(begin, begin + count * self.block_tokens)
            start, stop = max(here.start, tokens.start), min(here.stop, tokens.stop)
            if start < stop:
                slot = first * self.block_tokens + start - begin
                yield start - tokens.start, slot, stop - start
            begin = here.stop


def _inside(part: range, whole: range) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)
