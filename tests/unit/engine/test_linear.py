"""Every form of a weight matrix computes the same product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.linear import (
    DenseLinear,
    Linear,
    PackedLinear,
    PanelLinear,
    WidenedLinear,
    make_linear,
    panel_width,
)
from engine.quantize import Int8Linear, quantize_rows

Make = Callable[[torch.Tensor, torch.Tensor | None], Linear]

# (form, dtype, tolerance relative to the largest element of the result)
FORMS: list[tuple[Make, torch.dtype, float]] = [
    (DenseLinear, torch.float32, 1e-6),
    (PanelLinear, torch.float32, 1e-6),
    (PackedLinear, torch.float32, 1e-6),
    (WidenedLinear, torch.bfloat16, 1e-2),
    (PackedLinear, torch.bfloat16, 1e-2),
    (Int8Linear, torch.float32, 2e-2),
    (Int8Linear, torch.bfloat16, 2e-2),
]
ROWS = (1, 2, 15, 16, 33)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("make", "dtype", "tolerance"), FORMS)
def test_every_form_computes_the_product(
    make: Make, dtype: torch.dtype, tolerance: float, has_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(192, 64, generator=generator).to(dtype)
    bias = 10 * torch.randn(192, generator=generator).to(dtype) if has_bias else None
    linear = make(weight.clone(), bias)
    for rows in ROWS:
        x = torch.randn(rows, 64, generator=generator).to(dtype)
        expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        allowed = tolerance * float(expected.abs().max())
        assert linear(x).dtype == dtype
        assert float((linear(x) - expected).abs().max()) < allowed
        target = torch.full((rows, 192), 3.0, dtype=dtype)
        linear.add_to(target, x)
        assert float((target - 3 - expected).abs().max()) < 2 * allowed


def test_float32_and_bfloat16_get_a_form_that_their_cpu_is_good_at() -> None:
    assert isinstance(make_linear(torch.zeros(96, 8)), PanelLinear)
    assert isinstance(
        make_linear(torch.zeros(96, 8, dtype=torch.bfloat16)), WidenedLinear | PackedLinear
    )


@pytest.mark.parametrize(
    ("rows", "width"), [(960, 96), (3072, 96), (4096, 128), (151936, 128), (20, 20), (97, 97)]
)
def test_panels_divide_the_matrix(rows: int, width: int) -> None:
    assert panel_width(rows) == width


@pytest.mark.parametrize("columns", [1, 8, 20, 24, 40])
def test_int8_takes_any_number_of_columns(columns: int) -> None:
    weight, x = torch.randn(24, columns), torch.randn(3, columns)
    expected = x @ weight.T
    assert float((Int8Linear(weight, None)(x) - expected).abs().max()) < 0.05 * columns**0.5


def test_int8_is_within_half_a_step_and_rows_of_zeros_stay_zero() -> None:
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(2))
    weight[3] = 0
    quantized, scales = quantize_rows(weight)
    error = (quantized * scales.unsqueeze(1) - weight).abs()
    assert bool((error <= 0.5001 * scales.unsqueeze(1)).all())
    assert int(quantized[3].abs().max()) == 0
    assert int(quantized.abs().max()) == 127
