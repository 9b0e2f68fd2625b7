"""What holds for every step time, collective, queue and layout.

1. A step is the sum of its parts, which are finite and not negative; its seconds are above 0.
2. It is never below the roofline of its layout: FLOPs over all devices' peak, weights and KV over
   all devices' bandwidth, on a device and engine that are perfect.
3. More new tokens, more context and more sequences are never cheaper.
4. Stages do not shorten a step, and a step is at least as long as its interval.
5. A slower device, in any figure, is never faster.
6. What a share of requests stays within grows with the share and with the rate.
7. Layouts that are tried divide what the engine divides.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eastwest.layout import ParallelLayout
from planner.cost import CostModel, Row, StepCost
from planner.hardware import Device, find_device
from planner.layouts import fits_model
from planner.models import find_model
from planner.precision import Precision
from planner.queueing import Service, attained, latency_at, wait
from planner.stacks import Stack, find_stack
from planner.work import step_work

PERFECT = Stack(name="perfect", layer_s=0.0, expert_matmul={"bf16": 1}, expert_weights={"bf16": 1})
MODELS = (
    "llama-3.1-8b", "llama-3.1-70b", "qwen3-0.6b", "mixtral-8x7b", "qwen3-235b-a22b",
    "deepseek-v3", "deepseek-v3.2", "gpt-oss-120b", "glm-5.2", "opt-13b",
)  # fmt: skip
LAYOUTS = [ParallelLayout(tp=tp, pp=pp) for tp in (1, 2, 4, 8, 16) for pp in (1, 2, 5)] + [
    ParallelLayout(tp=tp, dp=dp, ep=tp * dp) for tp in (1, 2, 4) for dp in (1, 2, 8, 16)
]
models = st.sampled_from(MODELS)
layouts = st.sampled_from(LAYOUTS)
devices = st.sampled_from(("h100-sxm", "gb200-nvl72", "tpu-v5e", "cpu", "trn2"))
stacks = st.sampled_from(("vllm", "trtllm", "sglang", "tuned", "eastwest"))
decodes = st.builds(
    Row, new=st.just(1.0), past=st.integers(0, 100_000).map(float),
    count=st.integers(1, 512).map(float),
)  # fmt: skip
prompts = st.builds(
    Row, new=st.integers(2, 20_000).map(float), past=st.integers(0, 50_000).map(float),
    count=st.integers(1, 16).map(float), samples=st.booleans(),
)  # fmt: skip
rows = st.lists(st.one_of(decodes, prompts), min_size=1, max_size=4)


def a_cost(
    model: str, layout: ParallelLayout, device: Device | str, stack: Stack | str = "tuned"
) -> CostModel:
    shape = find_model(model)
    assume(fits_model(shape, layout))
    return CostModel(
        shape,
        layout,
        Precision.named("bf16"),
        find_device(device) if isinstance(device, str) else device,
        find_stack(stack) if isinstance(stack, str) else stack,
    )


def check(step: StepCost) -> None:
    for part in step.parts:
        for value in (part.compute_s, part.memory_s, part.network_s, part.fixed_s, part.seconds):
            assert 0 <= value < math.inf
        most = max(part.compute_s, part.memory_s, part.network_s, part.fixed_s)
        assert most - 1e-15 <= part.seconds <= part.compute_s + part.memory_s + 1e-15 + most
    assert step.seconds == pytest.approx(sum(part.seconds for part in step.parts))
    assert 0 < step.interval_s <= step.seconds * (1 + 1e-12)


@given(models, layouts, devices, stacks, rows)
def test_a_step_is_its_parts(
    model: str, layout: ParallelLayout, device: str, stack: str, batch: list[Row]
) -> None:
    check(a_cost(model, layout, device, stack).step(batch))


def perfect(name: str) -> Device:
    """The device at its data sheet."""
    device = find_device(name)
    return device.model_copy(update={"efficiency": type(device.efficiency)()})


@given(models, layouts, st.sampled_from(("h100-sxm", "gb200-nvl72", "tpu-v5e")), rows)
def test_no_step_is_below_the_roofline_of_all_its_devices(
    model: str, layout: ParallelLayout, name: str, batch: list[Row]
) -> None:
    device = perfect(name)
    cost = a_cost(model, layout, device, PERFECT)
    work = step_work(cost.model, cost.precision, batch)
    flops = sum(w.flops for w in work)
    moved = sum(w.moved_bytes for w in work)
    seconds = cost.step(batch).seconds
    assert seconds * layout.world_size >= flops / device.flops_per_s["bf16"] * (1 - 1e-9)
    assert seconds * layout.world_size >= moved / device.memory.bytes_per_s * (1 - 0.02)


@given(models, layouts, devices, rows, st.one_of(decodes, prompts), st.data())
def test_more_is_never_cheaper(
    model: str, layout: ParallelLayout, device: str, batch: list[Row], row: Row, data: st.DataObject
) -> None:
    """More tokens are of prompts: a single one is computed by the kernels of decode steps."""
    cost = a_cost(model, layout, device)
    base = cost.step([*batch, row]).seconds
    more = data.draw(st.integers(1, 5000))
    longer = [
        Row(row.new, row.past + more, row.count, row.samples),
        Row(row.new, row.past, row.count + more, row.samples),
    ]
    if row.new > 1:
        longer.append(Row(row.new + more, row.past, row.count, row.samples))
    for other in longer:
        assert cost.step([*batch, other]).seconds >= base * (1 - 1e-9)
    assert base >= cost.step(batch).seconds * (1 - 1e-9)


@given(models, st.sampled_from((1, 2, 4, 8)), st.sampled_from((2, 4, 8)), devices, rows)
def test_stages_do_not_shorten_a_step(
    model: str, tp: int, pp: int, device: str, batch: list[Row]
) -> None:
    one = a_cost(model, ParallelLayout(tp=tp), device).step(batch)
    staged = a_cost(model, ParallelLayout(tp=tp, pp=pp), device).step(batch)
    assert staged.seconds >= one.seconds * (1 - 1e-9)
    assert staged.interval_s >= one.seconds / pp * (1 - 1e-9)


@given(models, layouts, st.floats(0.1, 1.0), rows)
def test_a_slower_device_is_never_faster(
    model: str, layout: ParallelLayout, share: float, batch: list[Row]
) -> None:
    device = find_device("h100-sxm")
    base = a_cost(model, layout, device).step(batch).seconds
    memory = device.memory.model_copy(update={"bytes_per_s": device.memory.bytes_per_s * share})
    up = device.scale_up.model_copy(update={"bytes_per_s": device.scale_up.bytes_per_s * share})
    out = device.scale_out.model_copy(update={"bytes_per_s": device.scale_out.bytes_per_s * share})
    rates = {dtype: rate * share for dtype, rate in device.flops_per_s.items()}
    for field, value in (
        ("memory", memory), ("scale_up", up), ("scale_out", out), ("flops_per_s", rates),
    ):  # fmt: skip
        slower = device.model_copy(update={field: value})
        assert a_cost(model, layout, slower).step(batch).seconds >= base * (1 - 1e-9)


classes = st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=5).map(
    lambda times: [(t, 1 / len(times)) for t in times]
)


@given(classes, st.integers(1, 64), st.floats(0.01, 0.98), st.floats(0.1, 5.0), st.data())
def test_latency_at_a_percentile(
    times: list[tuple[float, float]], servers: int, busy: float, cv: float, data: st.DataObject
) -> None:
    service = Service.of(times)
    waiting = wait(servers, servers * busy / service.mean_s, service, cv)
    assert waiting is not None
    low = data.draw(st.floats(0.5, 0.99))
    high = data.draw(st.floats(low, 0.995))
    assert latency_at(low, times, waiting) <= latency_at(high, times, waiting) * (1 + 1e-5)
    seconds = latency_at(high, times, waiting)
    assert attained(seconds, times, waiting) >= high
    calmer = wait(servers, servers * busy / 2 / service.mean_s, service, cv)
    assert calmer is not None
    assert latency_at(high, times, calmer) <= seconds * (1 + 1e-5)


@given(models, st.integers(1, 64), st.integers(1, 8), st.integers(1, 16), st.booleans())
def test_layouts_divide_heads_and_experts(
    model: str, tp: int, pp: int, dp: int, spread: bool
) -> None:
    shape = find_model(model)
    layout = ParallelLayout(tp, pp, tp * dp if spread else 1, dp)
    if not fits_model(shape, layout):
        return
    assert shape.heads % tp == 0
    assert shape.kv_heads % tp == 0 or tp % shape.kv_heads == 0
    assert layout.ep == 1 or (shape.experts is not None and shape.experts.count % layout.ep == 0)
