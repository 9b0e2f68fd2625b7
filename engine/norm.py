"""Root mean square normalisation."""

from __future__ import annotations

import torch


class RmsNorm:
    """Over the last dim, its statistics in float32.

    ``x / sqrt(mean(x^2) + eps)`` is computed as ``x * sqrt(n) / hypot(norm(x), sqrt(n * eps))``,
    which is few and fast operations; `weight` (broadcast against x) carries the factor
    ``sqrt(n)``.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight = weight
        self._floor = torch.tensor((weight.shape[-1] * eps) ** 0.5, device=weight.device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._weight.device

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A new tensor of x's shape and dtype."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(length, self._floor)).to(x.dtype).mul_(self._weight)
