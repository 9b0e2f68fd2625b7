"""The paged KV of one rank: one allocation, read and written in canonical form.

The pool is ``[layer][K, V][head][slot][dim]`` (`slot` = block * block_tokens + offset), which is
the canonical order with slots in the place of tokens. So a run of consecutive blocks is one
strided copy whose inner pieces are whole ``[token][dim]`` stretches, and a sequence whose blocks
are consecutive is a plain view of the pool.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eastwest.errors import ConfigError, InvalidArgument
from eastwest.layout import KVSpec, Shard
from eastwest.ports import Buffer

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Bits are moved, not numbers: numpy has no bfloat16.
_BITS: dict[int, np.dtype[Any]] = {4: np.dtype("<u4"), 2: np.dtype("<u2")}

Bits = npt.NDArray[Any]


def block_runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """``(first block, count)`` of the maximal runs of consecutive blocks, in order."""
    first = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[i - 1] + 1:
            yield blocks[first], i - first
            first = i


class TorchKVMemory:
    """`eastwest.ports.KVMemory` over one tensor, `pool`, which the engine's step reads and writes.

    Memory is taken from the system as it is first written to. Blocks hold arbitrary bytes until
    then.
    """

    def __init__(
        self, spec: KVSpec, shard: Shard, num_blocks: int, block_tokens: int, device: torch.device
    ) -> None:
        assert spec.key_dim == spec.value_dim, "K and V share one tensor"
        self.spec = spec
        self.shard = shard
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        slots = num_blocks * block_tokens
        shape = (len(shard.layers), 2, len(shard.heads), slots, spec.key_dim)
        size = spec.slice_bytes(slots, len(shard.layers), len(shard.heads))
        if device.type == "cpu":
            _fits_in_memory(size)
        self.pool = torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype], device=device)
        # Where the pool is host memory, canonical bytes are copied straight from and to it.
        self._host = _bits_of(self.pool) if device.type == "cpu" else None

    def read(self, blocks: Sequence[int], layers: range, heads: range) -> Buffer:
        """See `KVMemory.read`. The new buffer is the caller's."""
        run = np.empty(self._shape(blocks, layers, heads), _BITS[self.spec.itemsize])
        for at, slots in self._slots(blocks):
            part = self._part(layers, heads, slots)
            tokens = slice(at, at + len(slots))
            if self._host is not None:
                run[:, :, :, tokens] = self._host[part]
            else:
                run[:, :, :, tokens] = _bits_of(self.pool[part].cpu())
        return run.reshape(-1).view(np.uint8).data

    def write(self, blocks: Sequence[int], layers: range, heads: range, payload: Buffer) -> None:
        """See `KVMemory.write`. `payload` is not kept."""
        shape = self._shape(blocks, layers, heads)
        data = np.frombuffer(payload, np.uint8)
        expected = self.spec.slice_bytes(shape[3], len(layers), len(heads))
        if data.nbytes != expected:
            raise InvalidArgument(
                f"a canonical run of {len(blocks)} blocks, {len(layers)} layers and {len(heads)} "
                f"heads has {data.nbytes} bytes; allowed: exactly {expected}"
            )
        run = data.view(_BITS[self.spec.itemsize]).reshape(shape)
        for at, slots in self._slots(blocks):
            part = self._part(layers, heads, slots)
            source = run[:, :, :, at : at + len(slots)]
            if self._host is not None:
                self._host[part] = source
            else:
                staged = torch.from_numpy(source.copy()).view(self.pool.dtype)
                self.pool[part] = staged.to(self.pool.device)

    def _slots(self, blocks: Sequence[int]) -> Iterator[tuple[int, range]]:
        """``(first token of the run, its slots)`` for each run of consecutive blocks."""
        at = 0
        for first, count in block_runs(blocks):
            start, tokens = first * self.block_tokens, count * self.block_tokens
            yield at, range(start, start + tokens)
            at += tokens

    def _shape(
        self, blocks: Sequence[int], layers: range, heads: range
    ) -> tuple[int, int, int, int, int]:
        """Of the run, after checking that this rank holds it."""
        for name, wanted, held in (
            ("blocks", blocks, range(self.num_blocks)),
            ("layers", layers, self.shard.layers),
            ("heads", heads, self.shard.heads),
        ):
            if not wanted or min(wanted) not in held or max(wanted) not in held:
                raise InvalidArgument(
                    f"{name} are {list(wanted)[:8]}; allowed: some of {held.start} to "
                    f"{held.stop - 1}"
                )
        tokens = len(blocks) * self.block_tokens
        return len(layers), 2, len(heads), tokens, self.spec.key_dim

    def _part(self, layers: range, heads: range, slots: range) -> tuple[slice, slice, slice, slice]:
        layer, head = self.shard.layers.start, self.shard.heads.start
        return (
            slice(layers.start - layer, layers.stop - layer),
            slice(None),
            slice(heads.start - head, heads.stop - head),
            slice(slots.start, slots.stop),
        )


def _bits_of(tensor: torch.Tensor) -> Bits:
    """The tensor's memory as unsigned integers of its item size."""
    integers = {4: torch.uint32, 2: torch.uint16}[tensor.itemsize]
    bits: Bits = tensor.view(integers).numpy()
    return bits


def _fits_in_memory(size_bytes: int) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size_bytes > total:
        raise ConfigError(
            f"kv_tokens asks for {size_bytes >> 20} MiB of KV; allowed: at most this machine's "
            f"memory, {total >> 20} MiB"
        )
