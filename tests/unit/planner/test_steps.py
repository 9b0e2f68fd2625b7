"""Steps of a split: FLOPs and bytes are those of the model, and no step beats its roof."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eastwest.layout import ParallelLayout
from planner.cost import CostModel, Row
from planner.planning import Question
from planner.split import Mode, Pool, Split
from planner.steps import roofs, typical_steps, work_of
from tests.plans import dense_plan, lone_plan, question


def model_of(q: Question, layout: ParallelLayout) -> CostModel:
    return CostModel(q.model, layout, q.precision, q.device, q.stack)


def test_a_prompt_takes_two_flops_a_parameter_and_token_and_its_attention() -> None:
    q = question()
    work = work_of(model_of(q, ParallelLayout()), [Row(4096, 0, samples=False)])
    pairs = 4096 * 4097 / 2
    attention = 2 * q.model.layers * q.model.attended_dims * pairs
    assert work.flops == pytest.approx(2 * q.model.active_body_params * 4096 + attention)


def test_one_token_reads_every_weight_and_its_context() -> None:
    q = question()
    work = work_of(model_of(q, ParallelLayout()), [Row(1, 8192)])
    weights = q.model.active_body_params + 2 * q.model.head_params
    kv = 2 * q.model.kv_elements_per_token * 8193
    assert work.bytes == pytest.approx(weights + kv, rel=0.01)


def test_tensor_parallel_devices_share_the_work() -> None:
    q, rows = question(), [Row(2048, 0)]
    one, four = (work_of(model_of(q, ParallelLayout(tp=tp)), rows) for tp in (1, 4))
    assert one.flops == pytest.approx(4 * four.flops)


def test_the_engine_and_the_speed_of_the_device_do_not_change_the_work() -> None:
    q = question()
    slow = q.device.model_copy(
        update={"flops_per_s": {name: rate / 10 for name, rate in q.device.flops_per_s.items()}}
    )
    other = replace(q, device=slow, stack=q.stack.model_copy(update={"matmul": 0.3}))
    rows = [Row(1, 1000, 32)]
    layout = ParallelLayout(tp=2)
    assert work_of(model_of(other, layout), rows) == work_of(model_of(q, layout), rows)


def test_each_step_of_each_mode_lies_under_the_roof() -> None:
    plan = dense_plan()
    highest = roofs(plan.question)[0]
    for split in plan.by_mode.values():
        assert split is not None
        for step in typical_steps(plan.question, split):
            assert 0 < step.flops_per_s < highest.at(step.work.intensity)


def test_pools_run_the_steps_of_their_role() -> None:
    plan = dense_plan()
    kinds = {
        mode: [(step.pool.role, step.kind) for step in typical_steps(plan.question, split)]
        for mode, split in plan.by_mode.items()
        if split is not None
    }
    assert kinds == {
        Mode.AGGREGATED: [("aggregated", "mixed"), ("aggregated", "decode")],
        Mode.DISAGGREGATED: [("prefill", "prefill"), ("decode", "decode")],
        Mode.CONDITIONAL: [("prefill", "prefill"), ("decode", "mixed"), ("decode", "decode")],
    }


def test_prefill_is_bound_by_arithmetic_and_decode_by_memory() -> None:
    plan = dense_plan()
    split = plan.by_mode[Mode.DISAGGREGATED]
    assert split is not None
    prefill, decode = typical_steps(plan.question, split)
    ridge = roofs(plan.question)[0].ridge
    assert prefill.work.intensity > ridge > decode.work.intensity


def test_a_long_prompt_is_counted_by_its_middle_chunk() -> None:
    q = replace(question(), workload=question().workload.scaled(isl=20))
    pool = Pool("prefill", ParallelLayout(), 1, 16384, 0.0, 1.0)
    decode = Pool("decode", ParallelLayout(), 1, 16384, 8.0, 1.0)
    split = Split(Mode.DISAGGREGATED, (pool, decode), 1.0, 1.0, 0.02, 0.02, 256, "prefill")
    prefill = typical_steps(q, split)[0]
    rows = [Row(16384, 16384, samples=False)]
    assert prefill.work == work_of(model_of(q, ParallelLayout()), rows)


def test_experts_that_are_asked_unevenly_make_the_busiest_device_work_more() -> None:
    layout = ParallelLayout(ep=8, dp=8)
    pool = Pool("decode", layout, 1, 16384, 256.0, 1.0)
    split = Split(Mode.AGGREGATED, (pool,), 1.0, 1.0, 0.02, 0.02, 256, "engine")
    even = question("qwen3-235b-a22b")
    uneven = replace(even, skew=2.0)
    for one, other in zip(typical_steps(even, split), typical_steps(uneven, split), strict=True):
        assert other.work.flops > one.work.flops
        assert other.cost.seconds > one.cost.seconds


def test_roofs_are_those_of_the_device_and_say_which_are_used() -> None:
    q = question()
    tops = roofs(q)
    assert [roof.flops_per_s for roof in tops] == sorted(
        set(q.device.flops_per_s.values()), reverse=True
    )
    assert {name for roof in tops if roof.used for name in roof.dtypes} >= {"fp8", "bf16"}
    for roof in tops:
        assert roof.at(roof.ridge / 2) == pytest.approx(roof.flops_per_s / 2)
        assert roof.at(roof.ridge * 2) == roof.flops_per_s
        assert roof.reached is not None
        assert roof.reached.flops_per_s < roof.flops_per_s


def test_a_single_device_mixes() -> None:
    plan = lone_plan()
    kinds = [step.kind for step in typical_steps(plan.question, plan.best)]
    assert kinds == ["mixed", "decode"]
