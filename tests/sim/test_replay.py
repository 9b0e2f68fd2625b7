"""A trace replayed against a simulated cluster: what is seen is what the cost model implies."""

from __future__ import annotations

import random

import pytest

from eastwest.layout import ParallelLayout
from eastwest.types import Role
from planner import Mode, ask, plan
from planner.cost import CostModel, Row
from planner.hardware import find_device
from planner.models import find_model
from planner.precision import Precision
from planner.stacks import find_stack
from planner.traces import TraceRow
from sim.engine import cost_of
from sim.replay import Replayed, by_cost, cluster_shape, replay

PAIR = ((Role.PREFILL, 1), (Role.DECODE, 1))


def a_cost() -> CostModel:
    model, device = find_model("llama-3.1-8b"), find_device("h100-sxm")
    precision = Precision.named("bf16")
    return CostModel(model, ParallelLayout(), precision, device, find_stack("tuned"))


def run(rows: list[TraceRow], seed: int = 0) -> Replayed:
    cost = a_cost()
    return replay(rows, cluster_shape(cost, PAIR), by_cost(cost), seed=seed)


def test_one_request_takes_what_its_steps_take() -> None:
    cost = a_cost()
    seen = run([TraceRow(2000, 101, 0.0)])
    assert seen.completed == seen.requests == 1
    assert seen.ttft_s[0] == pytest.approx(cost.step([Row(2000, 0)]).seconds, rel=0.05)
    assert seen.tpot_s[0] == pytest.approx(cost.step([Row(1, 2050)]).seconds, rel=0.05)


def test_the_same_trace_gives_the_same_figures() -> None:
    rows = [TraceRow(500, 20, i * 0.01) for i in range(50)]
    assert run(rows, seed=1) == run(rows, seed=1)


def test_blocks_that_came_before_are_found_in_the_caches() -> None:
    blocks = tuple(range(8))
    alone = run([TraceRow(8 * 512, 5, float(i), tuple(range(i * 8, i * 8 + 8))) for i in range(6)])
    alike = run([TraceRow(8 * 512, 5, float(i), blocks) for i in range(6)])
    assert alone.cached_share == 0
    assert alike.cached_share > 0.6
    assert alike.ttft_mean_s < alone.ttft_mean_s


@pytest.mark.parametrize("mode", [Mode.AGGREGATED, Mode.DISAGGREGATED])
def test_what_is_planned_is_about_what_the_scheduler_then_serves(mode: Mode) -> None:
    question = ask("llama-3.1-8b", "h100", devices=4, isl=1500, osl=120, ttft_s=0.5, tpot_s=0.02)
    split = plan(question).by_mode[mode]
    assert split is not None
    costs = {
        pool.role: CostModel(
            question.model, pool.layout, question.precision, question.device, question.stack
        )
        for pool in split.pools
    }
    times = {role: cost_of(cost) for role, cost in costs.items()}
    last = split.pools[-1]
    shape = cluster_shape(
        costs[last.role],
        tuple((Role(pool.role), pool.replicas) for pool in split.pools),
        step_tokens=last.chunk_tokens,
        running_max=2048,
    )

    def serve(load: float) -> Replayed:
        rng, at, rows = random.Random(5), 0.0, []
        for _ in range(600):
            at += rng.expovariate(split.rate * load)
            rows.append(TraceRow(1500, 120, at))
        return replay(rows, shape, lambda role: times[role.value])

    targets = question.targets
    assert serve(0.8).attained(targets.ttft_s, targets.tpot_s) >= targets.percentile
    assert serve(1.6).attained(targets.ttft_s, targets.tpot_s) < targets.percentile
