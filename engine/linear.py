"""Matrix products with weights, each held in the form that the device multiplies fastest.

A `Linear` computes ``x @ weight.T + bias`` for ``x`` of shape ``[T, K]``. The forms:

- `PackedLinear`: blocked by oneDNN at load. On CPUs 1.3 to 2 times as fast as a plain matrix for
  2 to 64 rows, and each row of its result does not depend on how many others there are;
- `DenseLinear`: a plain matrix, multiplied by torch (GPUs, and CPUs without oneDNN);
- `WidenedLinear`: a plain bfloat16 matrix on a CPU that has no bfloat16 arithmetic: many rows
  are multiplied in float32, slice by slice;
- `engine.quantize.Int8Linear`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

# Above this many rows, widening a slice of the weights costs less than emulated arithmetic.
WIDEN_ROWS = 16
# Widened at a time: enough to keep the product efficient, little enough to stay in the cache.
_SLICE_ELEMENTS = 1 << 19


class Linear(Protocol):
    """A weight matrix, ready to be multiplied with."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, K] -> [T, N]``, in x's dtype."""

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + self(x)``; `residual` itself is not changed."""


class DenseLinear:
    """``weight: [N, K]`` as it is; `bias: [N]` or None."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


class PackedLinear:
    """A copy of `weight` in oneDNN's blocked layout; the caller drops the original."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        # The row count is a hint for the layout; decode batches are what it matters for.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 16)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, self._weight, self._bias, "none", [], ""
        )
        return y

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual, self._weight, self._bias, "add"
        )
        return y


class WidenedLinear(DenseLinear):
    """bfloat16 in and out; few rows go through torch's matrix-vector kernel, which is quick."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] < WIDEN_ROWS:
            return super().__call__(x)
        return widened_product(x, self._weight, self._bias).to(x.dtype)


def widened_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``x @ weight.T + bias`` in float32, for a weight of a narrower type; ``[T, N]``."""
    wide = x.float()
    rows = max(1, _SLICE_ELEMENTS // weight.shape[1])
    parts = [F.linear(wide, part.float()) for part in weight.split(rows)]
    product = torch.cat(parts, dim=1)
    return product if bias is None else product.add_(bias)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The best form of `weight` (``[N, K]``) for its device and dtype, which are the result's.

    Takes `weight` over: the caller must not use it afterwards.
    """
    if weight.device.type != "cpu":
        return DenseLinear(weight, bias)
    if weight.dtype == torch.bfloat16 and not cpu_computes_bfloat16():
        return WidenedLinear(weight, bias)
    if weight.dtype in (torch.float32, torch.bfloat16) and _has_onednn():
        return PackedLinear(weight, bias)
    return DenseLinear(weight, bias)


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware rather than by widening."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
