"""Any rows and columns of a weight in FP8 take the scales of the blocks that they lie in."""

from __future__ import annotations

import pytest
import torch

from engine.block_scales import BlockScales, Rows
from engine.tensor_reader import ALL

BLOCKS = BlockScales(4, 6)
SHAPE = (11, 20)


def weight_and_scales(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    scales = torch.randint(1, 5, BLOCKS.shape(SHAPE)).float().exp2()
    return torch.randn(SHAPE).to(torch.float8_e4m3fn), scales.to(dtype)


@pytest.mark.parametrize("rows", [ALL, slice(3, 9), slice(4, 8), torch.tensor([10, 0, 5, 4, 3])],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("columns", [ALL, slice(5, 13), slice(18, 20)], ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_a_part_is_the_part_of_the_whole(
    rows: Rows, columns: slice, scale_dtype: torch.dtype
) -> None:
    weight, scales = weight_and_scales(scale_dtype)
    whole = torch.tensor(
        [[float(weight[r, c]) * float(scales[r // 4, c // 6]) for c in range(20)]
         for r in range(11)]
    )  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        part = BLOCKS.widened(weight, scales, rows, columns, dtype)
        assert torch.equal(part, whole[rows][:, columns].to(dtype))


def test_blocks_at_the_ends_have_scales_of_their_own() -> None:
    assert BLOCKS.shape(SHAPE) == (3, 4)
    assert BLOCKS.shape((8, 18)) == (2, 3)
    assert BlockScales(128, 128).shape((576, 7168)) == (5, 56)
