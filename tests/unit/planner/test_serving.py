"""What placement asks of the cost model is what the cost model says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eastwest.layout import ParallelLayout
from eastwest.messages import WorkerInfo
from eastwest.testing.builders import a_worker
from eastwest.types import Role
from planner.cost import CostModel, Row
from planner.hardware import find_device
from planner.models import find_model
from planner.precision import Precision
from planner.serving import PlannedCosts
from planner.stacks import find_stack

H100 = find_device("h100-sxm")


def a_cost(tp: int) -> CostModel:
    model, stack = find_model("llama-3.1-8b"), find_stack("vllm")
    return CostModel(model, ParallelLayout(tp=tp), Precision.named("bf16"), H100, stack)


def costs_of(worker: WorkerInfo) -> CostModel:
    return a_cost(worker.layout.tp)


PREFILL = replace(a_worker("p0", Role.PREFILL, step_tokens=2048), layout=ParallelLayout(tp=2))
DECODE = replace(a_worker("d0", Role.DECODE), layout=ParallelLayout(tp=4))


@pytest.mark.parametrize(("new", "past"), [(1, 0), (777, 0), (2048, 5000), (30_000, 1_000)])
def test_a_prompt_takes_the_sum_of_its_chunks(new: int, past: int) -> None:
    cost, chunk = a_cost(2), PREFILL.step_tokens
    exact = sum(
        cost.step([Row(min(chunk, new - done), past + done)]).seconds
        for done in range(0, new, chunk)
    )
    assert PlannedCosts(costs_of).prompt_s(PREFILL, new, past) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(("sequences", "context"), [(1, 100), (7, 40_000), (64, 64 * 3000)])
def test_a_decode_step_is_that_of_the_mean_context(sequences: int, context: int) -> None:
    exact = a_cost(4).step([Row(1, context / sequences, sequences)]).seconds
    predicted = PlannedCosts(costs_of).step_s(DECODE, sequences, context)
    assert predicted == pytest.approx(exact, rel=0.03)


def test_kv_moves_over_the_links_of_the_side_with_fewer_ranks() -> None:
    costs, tokens = PlannedCosts(costs_of), 10_000
    rate = 2 * H100.scale_out.bytes_per_s * H100.efficiency.link
    exact = tokens * DECODE.model.kv.bytes_per_token / rate + H100.scale_out.latency_s
    assert costs.transfer_s(PREFILL, DECODE, tokens) == pytest.approx(exact)
    assert costs.transfer_s(DECODE, PREFILL, tokens) == pytest.approx(exact)


def test_nothing_takes_no_time() -> None:
    costs = PlannedCosts(costs_of)
    assert costs.prompt_s(PREFILL, 0, 500) == costs.step_s(DECODE, 0, 0) == 0.0


def test_the_cost_model_is_made_once_for_workers_that_are_alike() -> None:
    made = []

    def cost_of(worker: WorkerInfo) -> CostModel:
        made.append(worker.worker_id)
        return costs_of(worker)

    costs = PlannedCosts(cost_of)
    for name in ("d0", "d1", "d2"):
        costs.step_s(replace(DECODE, worker_id=name), 3, 300)
    costs.prompt_s(PREFILL, 100, 0)
    assert made == ["d0", "p0"]
