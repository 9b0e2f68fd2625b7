"""Weight-only int8: one scale a row, a quarter of float32's bytes to stream for a decode step.

Products are computed from bfloat16 activations (what torch's packed CPU kernel takes), whatever
dtype activations have outside; so int8 with float32 is a little less exact than the weights alone
would make it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.linear import widened_product

_INT8_MAX = 127.0
# torch's int8 kernel takes so many columns at a time, and reads beyond the end of other matrices.
_KERNEL_COLUMNS = 16
# Above this many rows, widening a slice of the weights costs less than torch's int8 kernel.
_WIDEN_ROWS = 32


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight [N, K] -> (int8 [N, K], scales float32 [N])``, rounding to nearest.

    ``int8 * scale`` is within half a scale of the weight; the scale of a row of zeros is 0.
    """
    wide = weight.float()
    scales = wide.abs().amax(dim=1) / _INT8_MAX
    steps = wide / torch.where(scales == 0, 1.0, scales).unsqueeze(1)
    return steps.round_().to(torch.int8), scales


class Int8Linear:
    """A `engine.linear.Linear` that holds int8 rows and their scales."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._padding = -weight.shape[1] % _KERNEL_COLUMNS
        self._weight, self._scales = quantize_rows(F.pad(weight, (0, self._padding)))
        self._narrow_scales = self._scales.bfloat16()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        narrow = F.pad(x.bfloat16(), (0, self._padding)) if self._padding else x.bfloat16()
        if x.shape[0] < _WIDEN_ROWS and x.device.type == "cpu":
            y = torch._weight_int8pack_mm(narrow, self._weight, self._narrow_scales).to(x.dtype)
        else:
            y = widened_product(narrow, self._weight, None).mul_(self._scales).to(x.dtype)
        return y if self._bias is None else y.add_(self._bias)

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        target.add_(self(x))
