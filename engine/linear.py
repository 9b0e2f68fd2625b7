"""Matrix products with weights, each held in the form that the device multiplies fastest.

A `Linear` computes ``x @ weight.T + bias`` for ``x`` of shape ``[T, K]``. The forms:

- `PanelLinear`, float32 on CPUs: the matrix cut into panels of columns, each of which stays in
  the second-level cache while it is multiplied. Measured against a plain matrix, it is 7 to 10 %
  faster for hundreds of rows and 1.2 to 1.9 times as fast for 2 to 64; a tenth slower for one;
- `PackedLinear`, huge matrices, and bfloat16 on CPUs that compute in it: blocked by oneDNN;
- `WidenedLinear`, bfloat16 on CPUs that do not: many rows are multiplied in float32;
- `DenseLinear`: a plain matrix, multiplied by torch, for all else (GPUs);
- `engine.quantize.Int8Linear`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

# Above this many rows, widening a slice of the weights costs less than emulated arithmetic.
WIDEN_ROWS = 16
# Columns of one panel.
_PANEL = 96
# From this size on (an output head's), oneDNN is the faster one for decode batches.
_HUGE_ELEMENTS = 1 << 24
# Widened at a time: enough to keep the product efficient, little enough to stay in the cache.
_SLICE_ELEMENTS = 1 << 19


class Linear(Protocol):
    """A weight matrix, ready to be multiplied with."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, K] -> [T, N]``, in x's dtype."""

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        """``target += self(x)``; `target` is contiguous."""


class DenseLinear:
    """``weight: [N, K]`` as it is; `bias: [N]` or None."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        target.add_(self(x))


class PanelLinear:
    """``[panels, K, width]``: a copy of `weight`, transposed panel by panel."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        rows, columns = weight.shape
        width = panel_width(rows)
        panels = weight.view(rows // width, width, columns)
        self._panels = panels.transpose(1, 2).contiguous()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        panels, columns, width = self._panels.shape
        y = x.new_empty(len(x), panels * width)
        spread = x.expand(panels, len(x), columns)
        torch.bmm(spread, self._panels, out=self._by_panel(y))
        return y if self._bias is None else y.add_(self._bias)

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        spread = x.expand(len(self._panels), *x.shape)
        self._by_panel(target).baddbmm_(spread, self._panels)
        if self._bias is not None:
            target.add_(self._bias)

    def _by_panel(self, y: torch.Tensor) -> torch.Tensor:
        """``[T, N]`` seen as ``[panels, T, width]``, for products to be written in place."""
        panels, _, width = self._panels.shape
        return y.view(len(y), panels, width).transpose(0, 1)


def panel_width(rows: int) -> int:
    """The divisor of `rows` nearest to the best width; all of them where none is near."""
    near = [w for w in range(_PANEL // 2, _PANEL * 3 // 2) if rows % w == 0 and w % 16 == 0]
    return min(near, key=lambda w: (abs(w - _PANEL), -w), default=rows)


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

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        target.add_(self(x))


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
    parts = [F.linear(wide, part.float()) for part in torch.split(weight, rows)]
    product = torch.cat(parts, dim=1)
    return product if bias is None else product.add_(bias)


class HeadwiseLinear:
    """One matrix for each head: ``weight [N, K, M]``, as it is."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight
        emulated = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        self._widens = emulated and not cpu_computes_bfloat16()

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """``x [T, N, K]`` -> ``out [T, N, M]``, which may be strided."""
        by_head = x.transpose(0, 1)
        if self._widens and len(x) >= WIDEN_ROWS:
            out.transpose(0, 1).copy_(torch.bmm(by_head.float(), self._weight.float()))
        else:
            torch.bmm(by_head, self._weight, out=out.transpose(0, 1))


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The best form of `weight` (``[N, K]``) for its device and dtype, which are the result's.

    Takes `weight` over: the caller must not use it afterwards.
    """
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return DenseLinear(weight, bias)
    if weight.dtype == torch.bfloat16 and not cpu_computes_bfloat16():
        return WidenedLinear(weight, bias)
    if weight.dtype == torch.float32 and weight.numel() < _HUGE_ELEMENTS:
        return PanelLinear(weight, bias)
    if _has_onednn():
        return PackedLinear(weight, bias)
    return DenseLinear(weight, bias)


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware rather than by widening."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _has_onednn() -> bool:
    built: bool = torch._C._has_mkldnn
    return built and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
