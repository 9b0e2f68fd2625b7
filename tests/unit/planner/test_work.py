"""Counts of FLOPs and bytes: the same as the cost model's, and those of formulas done by hand."""

from __future__ import annotations

import pytest

from eastwest.layout import ParallelLayout
from planner.cost import CostModel, Row
from planner.hardware import Efficiency, find_device
from planner.models import find_model, model_names
from planner.precision import Precision
from planner.roofline import decode_work, prefill_work, step_bound
from planner.stacks import Stack
from planner.work import dense_work, intensity, step_work

H100 = find_device("h100-sxm").model_copy(update={"efficiency": Efficiency()})
IDEAL = Stack(name="ideal", layer_s=0, expert_matmul={"bf16": 1}, expert_weights={"bf16": 1})
BF16 = Precision.named("bf16")


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(
    "rows",
    [
        [Row(1, 1000, 7)],
        [Row(2000, 0)],
        [Row(1, 5000, 64), Row(512, 4096, samples=False)],
    ],
    ids=["decode", "prefill", "mixed"],
)
def test_arithmetic_is_that_of_the_cost_model(name: str, rows: list[Row]) -> None:
    model = find_model(name)
    cost = CostModel(model, ParallelLayout(), BF16, H100, IDEAL).step(rows)
    flops = sum(part.compute_s for part in cost.parts) * H100.flops_per_s["bf16"]
    assert sum(w.flops for w in step_work(model, BF16, rows)) == pytest.approx(flops, rel=1e-9)


@pytest.mark.parametrize("name", model_names())
def test_no_step_of_the_cost_model_beats_the_bound(name: str) -> None:
    model = find_model(name)
    cost = CostModel(model, ParallelLayout(), BF16, H100, IDEAL)
    for work, rows in (
        (decode_work(model, BF16, 16, 1001), [Row(1, 1000, 16)]),
        (prefill_work(model, BF16, 2000), [Row(2000, 0)]),
    ):
        assert step_bound(work, H100).seconds <= cost.step(rows).seconds


def test_a_large_batch_of_decode_reads_every_expert_once() -> None:
    model = find_model("mixtral-8x7b")
    assert model.experts is not None
    one, many = (
        next(w for w in decode_work(model, BF16, batch, 2) if w.name == "experts")
        for batch in (1, 10_000)
    )
    assert one.weight_bytes == pytest.approx(model.layers * 2 * model.expert_params * 2)
    assert many.weight_bytes == pytest.approx(model.layers * 8 * model.expert_params * 2)
    assert many.flops == pytest.approx(10_000 * one.flops)


def test_decode_attention_shares_keys_in_a_group_of_heads() -> None:
    """``4 N H / (2 K H bytes)``: 16 for 8 queries a key in 8 bits, whatever batch and context."""
    precision = Precision.named("fp8", "fp8")
    for batch, context in ((1, 5000), (64, 5000), (4, 50_000)):
        work = decode_work(find_model("llama-3-70b"), precision, batch, context)
        scores = next(w for w in work if w.name == "attention over KV")
        assert intensity([scores]) == pytest.approx(16)


def test_waits_are_named_and_shrink_with_devices() -> None:
    few, many = dense_work(7e9, 1, "bf16", 1e9), dense_work(7e9, 4096, "bf16", 1e9)
    assert step_bound(few, H100).waits_for == "weights"
    assert step_bound(many, H100).waits_for == "matrices"
    assert step_bound(dense_work(7e9, 1, "bf16", 1e12), H100).waits_for == "KV"
    alone, shared = step_bound(many, H100, 1), step_bound(many, H100, 8)
    assert shared.seconds == pytest.approx(alone.seconds / 8)
    assert step_bound(many, H100, mfu=0.5).matmul_s == pytest.approx(2 * alone.matmul_s)
