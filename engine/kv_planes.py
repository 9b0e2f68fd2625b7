"""The keys, or the values, of one layer in the dtype that the KV is kept in.

A plane has rows of shape ``[H, S]``, one for each head and slot, and gives and takes them in the
dtype that the engine computes in. In a quantized dtype a row is its elements and then one float32
scale: ``scale = max(abs(row)) / largest`` with 127 for int8 and 448 for float8_e4m3, and
``element = row / scale``, both in float32, rounded to nearest, ties to even, within the range of
the dtype; a row of zeros has scale 0 and zeros. ``element * scale`` is the value. What is
narrowed without scales is rounded likewise, and beyond the range becomes the largest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from eastwest.layout import QUANTIZED, SCALE_BYTES

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3": torch.float8_e4m3fn,
    "int8": torch.int8,
}
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

Runs = Sequence[tuple[int, int]]  # (first slot, count)
Places = Sequence[tuple[int, int, int]]  # (T index, first slot, count)


class Plane(Protocol):
    """Rows of D elements."""

    def store(self, slots: torch.Tensor | None, runs: Places, rows: torch.Tensor) -> None:
        """Put ``rows [T, H, D]`` where they belong; see `engine.kv_memory.LayerKV.store`."""

    def load(self, runs: Runs) -> torch.Tensor:
        """``[1, H, tokens, D]`` of the slots of `runs`."""


def make_plane(rows: torch.Tensor, dtype: str, compute: torch.dtype) -> Plane:
    """Over ``rows [H, S, bytes of a row]`` uint8, which hold rows of `dtype`."""
    if dtype in QUANTIZED:
        return QuantizedPlane(rows, TORCH_DTYPES[dtype], compute)
    pool = rows.view(TORCH_DTYPES[dtype])
    return PlainPlane(pool) if pool.dtype == compute else CastPlane(pool, compute)


class PlainPlane:
    """Rows in the dtype that is computed in; `load` gives a view where that is possible."""

    def __init__(self, pool: torch.Tensor) -> None:
        self._pool = pool

    def store(self, slots: torch.Tensor | None, runs: Places, rows: torch.Tensor) -> None:
        _put(self._pool, slots, runs, rows)

    def load(self, runs: Runs) -> torch.Tensor:
        return _gathered(self._pool, runs)


class CastPlane:
    """Rows in another floating-point dtype, without scales."""

    def __init__(self, pool: torch.Tensor, compute: torch.dtype) -> None:
        self._pool = pool
        self._compute = compute
        largest = torch.finfo(pool.dtype).max
        self._largest = largest if largest < torch.finfo(compute).max else None

    def store(self, slots: torch.Tensor | None, runs: Places, rows: torch.Tensor) -> None:
        if self._largest is not None:
            rows = rows.clamp(-self._largest, self._largest)
        _put(self._pool, slots, runs, rows.to(self._pool.dtype))

    def load(self, runs: Runs) -> torch.Tensor:
        return _gathered(self._pool, runs).to(self._compute)


class QuantizedPlane:
    """Rows of int8 or float8_e4m3 elements, each with its scale."""

    def __init__(self, pool: torch.Tensor, dtype: torch.dtype, compute: torch.dtype) -> None:
        self._pool = pool
        self._dtype = dtype
        self._compute = compute
        self._dim = pool.shape[-1] - SCALE_BYTES

    def store(self, slots: torch.Tensor | None, runs: Places, rows: torch.Tensor) -> None:
        _put(self._pool, slots, runs, quantize_kv(rows, self._dtype))

    def load(self, runs: Runs) -> torch.Tensor:
        rows = _gathered(self._pool, runs)
        elements = rows[..., : self._dim].view(torch.int8)
        scales = rows[..., self._dim :].contiguous().view(torch.float32)
        wide = elements.float() if self._dtype == torch.int8 else _float8_values(elements)
        return wide.mul_(scales).to(self._compute)


def quantize_kv(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``[..., D]`` -> ``[..., D + 4]`` uint8, the canonical bytes of quantized rows."""
    largest = _LARGEST[dtype]
    wide = rows.float()
    scales = wide.abs().amax(dim=-1, keepdim=True) / largest
    scaled = wide / torch.where(scales == 0, 1.0, scales)
    if dtype == torch.int8:
        scaled.round_()
    elements = scaled.clamp_(-largest, largest).to(dtype)
    return torch.cat([elements.view(torch.uint8), scales.view(torch.uint8)], dim=-1)


def _float8_values(elements: torch.Tensor) -> torch.Tensor:
    """float32 values of float8_e4m3 elements, given as int8; 3 times as fast as torch's.

    Sign, exponent and mantissa are put where float16 has them, whose exponents are 8 greater.
    """
    halves = elements.to(torch.int16).mul_(1 << 7).bitwise_and_(~(1 << 14))
    return halves.view(torch.float16).float().mul_(1 << 8)


def _put(pool: torch.Tensor, slots: torch.Tensor | None, runs: Places, rows: torch.Tensor) -> None:
    """Put ``rows [T, H, D]`` into ``pool [H, S, D]``."""
    by_head = rows.transpose(0, 1)
    if slots is not None:
        pool.index_copy_(1, slots, by_head)
        return
    for index, slot, count in runs:
        pool[:, slot : slot + count] = by_head[:, index : index + count]


def _gathered(pool: torch.Tensor, runs: Runs) -> torch.Tensor:
    """``[1, H, keys, D]``: the pool's slots of `runs`; a view where that is possible."""
    pool = pool.unsqueeze(0)
    if len(runs) == 1:
        return pool.narrow(2, *runs[0])
    return torch.cat([pool.narrow(2, *run) for run in runs], dim=2)
