"""FP8 weights with one scale for each block of rows and columns, as DeepSeek-V3 is published.

``element * scale of its block``, in float32, is the weight; it is then rounded to the dtype that is
computed in. Activations are not quantized.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from eastwest.errors import ModelError
from eastwest.hf_fields import HfFields

SUFFIX = "_scale_inv"  # of a weight's name, for the name of its scales
Rows = slice | torch.Tensor  # a run of rows, or their numbers


class BlockScales(NamedTuple):
    """The size of a block; those at the ends of a matrix may be smaller."""

    rows: int
    columns: int

    def shape(self, weight: tuple[int, ...]) -> tuple[int, ...]:
        """Of the scales of a weight of shape `weight`."""
        rows, columns = weight
        return (-(-rows // self.rows), -(-columns // self.columns))

    def widened(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        rows: Rows,
        columns: slice,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Rows and columns of ``weight [N, K]`` float8 as `dtype`, a new tensor.

        scales: of the whole weight. In float32 there are never more rows than a block has.
        """
        elements = weight[rows][:, columns]
        row_blocks = torch.arange(len(weight))[rows] // self.rows
        by_column = scales.float().repeat_interleave(self.columns, dim=1)
        by_column = by_column[:, : weight.shape[1]][:, columns]
        wide = torch.empty(elements.shape, dtype=dtype)
        for first in range(0, len(elements), self.rows):
            part = slice(first, first + self.rows)
            wide[part] = elements[part].float().mul_(by_column[row_blocks[part]])
        return wide


def read_block_scales(read: HfFields) -> BlockScales | None:
    """What config.json says of quantized weights; None where they are not.

    Raises `ModelError` for every other quantization.
    """
    if "quantization_config" not in read.given:
        return None
    fields = read.sub("quantization_config")
    method = fields.given.get("quant_method", "unnamed")
    if method != "fp8":
        raise ModelError(
            f"{read.where}: quantization_config is of method {method!r}; allowed: fp8 with a scale "
            f"for each block, or none, weights in float32, float16 or bfloat16"
        )
    fields.one_of("fmt", ("e4m3",), "e4m3")
    fields.one_of("activation_scheme", ("dynamic",), "dynamic")
    size: Any = fields.given.get("weight_block_size")
    sizes = isinstance(size, list) and all(type(n) is int and n > 0 for n in size)
    if not sizes or len(size) != 2:
        raise fields.error("weight_block_size", "two integers from 1, such as [128, 128]")
    return BlockScales(*size)
