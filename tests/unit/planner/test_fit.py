"""The fit finds the machine that made the times, and refuses times that tell nothing."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from eastwest.errors import ConfigError, InvalidArgument
from eastwest.layout import ParallelLayout
from planner.cost import CostModel, Row
from planner.fit import (
    Fitted,
    Measured,
    Spread,
    Unknown,
    fit,
    fit_steps,
    step_unknowns,
    with_figures,
)  # fmt: skip
from planner.hardware import Device, find_device
from planner.model_shape import Experts, ModelShape
from planner.precision import Precision
from planner.stacks import Stack

SMALL = ModelShape(
    "small", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn_size=1536, vocab=49152,
    context_tokens=8192, windows=(None,) * 30, tied=True,
)  # fmt: skip
DEVICE = find_device("cpu")
STACK = Stack(name="eastwest", layer_s=5e-5, step_s=5e-4, sequence_s=5e-5)
FP32 = Precision.named("fp32")
TRUE = {
    "device.efficiency.matmul.fp32": 0.55,
    "device.efficiency.weights.fp32": 0.62,
    "device.efficiency.prompt_attention.fp32": 0.11,
    "device.efficiency.kv.fp32": 0.23,
    "stack.layer_s": 4e-4,
    "stack.step_s": 2e-3,
    "stack.sequence_s": 2e-3,
    "stack.prompt_s": 2e-3,
}
RATES = {"fp32": DEVICE.flops_per_s["fp32"]}
GRID = [
    *((Row(new, past),) for new in (8, 32, 128, 512, 2048) for past in (0, 1024, 4096)),
    *((Row(1, past, count),) for count in (1, 4, 16, 32) for past in (16, 128, 1024, 4096)),
    *((Row(new, 0, 8),) for new in (2, 16)),
    (Row(128, 0), Row(1, 1024, 16)),
]


def device() -> Device:
    return DEVICE.model_copy(update={"flops_per_s": RATES})


def synthetic(noise: float = 0.0, model: ModelShape = SMALL) -> list[Measured]:
    """Steps as the machine with the `TRUE` figures takes, each off by about `noise`."""
    true = CostModel(model, ParallelLayout(), FP32, *with_figures(device(), STACK, TRUE))
    off = np.random.default_rng(7).normal(0.0, noise, len(GRID))
    return [
        Measured(rows, true.step(rows).seconds * float(np.exp(error)))
        for rows, error in zip(GRID, off, strict=True)
    ]


def fitted(measured: list[Measured]) -> Fitted:
    return fit_steps(SMALL, FP32, measured, device(), STACK)


# layer_s and step_s are one figure to the steps of one model: what a step costs at least.
SINGLE = [name for name in TRUE if name not in ("stack.layer_s", "stack.step_s")]


def fixed_s(values: dict[str, float]) -> float:
    return SMALL.layers * values["stack.layer_s"] + values["stack.step_s"]


def test_it_finds_the_figures_that_made_the_times() -> None:
    found = fitted(synthetic())
    for name in SINGLE:
        assert found.values[name] == pytest.approx(TRUE[name], rel=0.1), name
    assert fixed_s(dict(found.values)) == pytest.approx(fixed_s(TRUE), rel=0.1)
    assert Spread.of(found.errors).p90 < 0.02


def test_noise_moves_them_little() -> None:
    found = fitted(synthetic(noise=0.05))
    for name in SINGLE:
        assert found.values[name] == pytest.approx(TRUE[name], rel=0.3), name
    assert Spread.of(found.errors).median < 0.06


def test_one_wild_time_moves_little() -> None:
    clean, wild = synthetic(), synthetic()
    wild[20] = replace(wild[20], seconds=10 * wild[20].seconds)
    found, expected = fitted(wild), fitted(clean)
    for name in SINGLE:
        assert found.values[name] == pytest.approx(expected.values[name], rel=0.2), name
    assert found.errors[20] == pytest.approx(-0.9, abs=0.02)


def test_a_figure_that_the_times_say_nothing_about_stays_where_it_began() -> None:
    decode = [step for step in synthetic() if step.kind == "decode"]
    found = fitted(decode)
    start = step_unknowns(SMALL, FP32, RATES)["device.efficiency.prompt_attention.fp32"].start
    assert found.values["device.efficiency.prompt_attention.fp32"] == pytest.approx(start, rel=1e-3)


def test_figures_are_in_the_device_and_the_stack_that_come_back() -> None:
    found = fitted(synthetic())
    assert found.device.share("kv", "fp32") == found.values["device.efficiency.kv.fp32"]
    assert found.stack.sequence_s == found.values["stack.sequence_s"]
    cost = CostModel(SMALL, ParallelLayout(), FP32, found.device, found.stack)
    assert found.predicted_s == tuple(cost.step(rows).seconds for rows in GRID)


def test_any_prediction_can_be_fitted() -> None:
    def per_request(device: Device, stack: Stack) -> list[float]:
        return [stack.request_s + n * device.scale_out.latency_s for n in (0, 10, 100)]

    unknowns = {
        "stack.request_s": Unknown(1e-3, 1e-6, 1.0),
        "device.scale_out.latency_s": Unknown(1e-4, 1e-7, 1.0),
    }
    times = [0.02 + n * 3e-3 for n in (0, 10, 100)]
    found = fit(per_request, times, DEVICE, STACK, unknowns)
    assert found.stack.request_s == pytest.approx(0.02, rel=0.05)
    assert found.device.scale_out.latency_s == pytest.approx(3e-3, rel=0.05)


def test_experts_bring_figures_of_their_own() -> None:
    sparse = replace(SMALL, experts=Experts(8, 2, 512, 0, SMALL.layers))
    names = set(step_unknowns(sparse, FP32, RATES))
    assert names - set(step_unknowns(SMALL, FP32, RATES)) == {
        "stack.sparse_layer_s", "stack.expert_matmul.fp32", "stack.expert_weights.fp32",
    }  # fmt: skip
    found = fit_steps(sparse, FP32, synthetic(model=sparse), device(), STACK)
    assert np.isfinite(found.errors).all()


@pytest.mark.parametrize("seconds", [-1.0, 0.0, float("nan"), float("inf")])
def test_times_that_cannot_be_are_refused(seconds: float) -> None:
    measured = synthetic()
    measured[3] = replace(measured[3], seconds=seconds)
    with pytest.raises(InvalidArgument, match="above 0"):
        fitted(measured)


def test_too_few_times_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="8 measured times cannot tell 8 figures"):
        fitted(synthetic()[:8])


@pytest.mark.parametrize("name", ["stack.speed", "device.efficiency.luck.bf16", "engine.layer_s"])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{name} is no figure"):
        with_figures(DEVICE, STACK, {name: 1.0})


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ConfigError, match=r"eastwest\[plan\]"):
        fitted(synthetic())


def test_kinds_and_spreads() -> None:
    kinds = [step.kind for step in synthetic()]
    assert (kinds[0], kinds[15], kinds[-1]) == ("prefill", "decode", "mixed")
    spread = Spread.of([-0.1 * i for i in range(11)])
    assert spread.count == 11
    assert spread.median == pytest.approx(0.5)
    assert spread.p90 == pytest.approx(0.9)
    assert Spread.of([-0.25]) == Spread(1, 0.25, 0.25)
