"""From the tensors of a checkpoint to weights on a device, slice by slice.

What is read is a view of the mapped file, cut to the rows or columns asked for before it is
copied, so that no more of the file than these is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from engine.block_scales import SUFFIX, BlockScales, Rows
from engine.linear import Linear
from engine.norm import RmsNorm

MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]
ALL = slice(None)


class TensorSource(Protocol):
    """What loading needs of an `engine.checkpoint.Checkpoint`."""

    def names(self) -> frozenset[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def tensor(self, name: str) -> torch.Tensor: ...


class TensorReader:
    """Reads weights as `dtype` on `device`; names are without ``.weight`` and ``.bias``.

    scales: of the weights that are in FP8, if any are.
    """

    def __init__(
        self,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        make_linear: MakeLinear,
        scales: BlockScales | None = None,
    ) -> None:
        self._source = source
        self._dtype = dtype
        self._device = device
        self._make_linear = make_linear
        self._scales = scales

    def fused(self, parts: Sequence[tuple[str, Rows, bool]]) -> Linear:
        """``(name, rows, whether it has a bias)`` of matrices, below each other."""
        weight = torch.cat([self.tensor(f"{name}.weight", rows) for name, rows, _ in parts])
        bias = None
        if any(has_bias for _, _, has_bias in parts):
            bias = torch.cat([self._bias(*part) for part in parts])
        return self._make_linear(weight, bias)

    def columns(self, name: str, columns: slice, has_bias: bool = False) -> Linear:
        """Of a matrix whose partial products the ranks sum, so that one alone adds the bias."""
        weight = self._cut(f"{name}.weight", ALL, columns)
        first = has_bias and columns.start == 0
        return self._make_linear(weight, self.tensor(f"{name}.bias") if first else None)

    def norm(self, name: str, eps: float) -> RmsNorm:
        return RmsNorm(self.norm_weight(name), eps)

    def norm_weight(self, name: str) -> torch.Tensor:
        """A norm's weight times the root of its size; see `engine.norm`."""
        weight = self._source.tensor(f"{name}.weight").float()
        return self._ready(weight * len(weight) ** 0.5)

    def tensor(self, name: str, rows: Rows = ALL, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Rows of the tensor of the full `name`, a copy."""
        return self._cut(name, rows, ALL, dtype)

    def _bias(self, name: str, rows: Rows, has_bias: bool) -> torch.Tensor:
        if has_bias:
            return self.tensor(f"{name}.bias", rows)
        whole = torch.zeros(self._source.shape(f"{name}.weight")[0])
        return self._ready(whole[rows])

    def _cut(
        self, name: str, rows: Rows, columns: slice, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        stored = self._source.tensor(name)
        if self._scales is not None and stored.dtype == torch.float8_e4m3fn:
            scales = self._source.tensor(name + SUFFIX)
            wide = self._scales.widened(stored, scales, rows, columns, dtype or self._dtype)
            return wide.to(self._device)
        cut = stored[rows]
        return self._ready(cut if columns == ALL else cut[:, columns], dtype)

    def _ready(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        # Always a copy: one view that stays would keep the whole file mapped and resident.
        return tensor.to(self._device, dtype or self._dtype, copy=True)
