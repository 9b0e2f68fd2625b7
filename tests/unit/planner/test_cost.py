"""Step times: closed formulas on an ideal device, counts by brute force, and layouts."""

from __future__ import annotations

import random
from itertools import pairwise
from statistics import fmean

import pytest

from eastwest.layout import ParallelLayout
from planner.closed_loop import chunks, closed_loop
from planner.cost import CostModel, Row, StepCost, attended, picked
from planner.hardware import Device, device_from, find_device
from planner.model_shape import Experts
from planner.models import find_model
from planner.precision import Precision
from planner.stacks import Stack, find_stack

BF16 = Precision.named("bf16")
BARE = Stack(name="bare", layer_s=0.0, expert_matmul={"bf16": 1.0}, expert_weights={"bf16": 1.0})
IDEAL = device_from(
    """
    name: ideal
    vendor: none
    flops_per_s: {bf16: 1.0e+15}
    memory: {bytes: 1.0e+12, bytes_per_s: 4.0e+12}
    scale_up: {domain: 8, bytes_per_s: 1.0e+14, latency_s: 0, latency_per_doubling_s: 0}
    scale_out: {bytes_per_s: 1.0e+13, latency_s: 0}
    """,
    "ideal",
)


def a_cost(
    model: str = "llama-3.1-8b",
    layout: ParallelLayout | None = None,
    device: Device = IDEAL,
    stack: Stack = BARE,
    skew: float = 1.0,
) -> CostModel:
    return CostModel(find_model(model), layout or ParallelLayout(), BF16, device, stack, skew)


def part(step: StepCost, name: str) -> float:
    return sum(p.seconds for p in step.parts if p.name == name)


@pytest.mark.parametrize("new", [1, 2, 5, 9])
@pytest.mark.parametrize("past", [0, 1, 3, 4, 5, 20])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 8, 100])
def test_pairs_of_queries_and_keys_by_brute_force(new: int, past: int, window: int | None) -> None:
    seen = set()
    pairs = 0
    for query in range(past, past + new):
        first = 0 if window is None else max(0, query - window + 1)
        pairs += query - first + 1
        seen |= set(range(first, query + 1))
    keys = sum(1 for key in seen if key < past)
    assert attended(new, past, window) == (pairs, keys)


@pytest.mark.parametrize(("new", "past"), [(1, 5000), (4096, 0), (3000, 1000), (10, 20)])
def test_picked_pairs_by_brute_force(new: int, past: int) -> None:
    """Each query attends to 2,048 of what it would see."""
    pairs, read = attended(new, past, None)
    expected = sum(min(query + 1, 2048) for query in range(past, past + new))
    assert picked(new, past, pairs, read, 2048) == (expected, min(past, 2048 * new))


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-32b", "llama-3.1-405b"])
@pytest.mark.parametrize("context", [0, 1, 10_000])
def test_an_ideal_decode_step_reads_weights_and_kv_once(name: str, context: int) -> None:
    """Bytes over bandwidth, and what the token itself moves between components: below 1 %."""
    model = find_model(name)
    step = a_cost(name).step([Row(1, context)])
    weights = 2 * (model.body_params + model.head_params)
    kv = 2 * model.kv_elements_per_token * (context + 1)
    assert step.seconds == pytest.approx((weights + kv) / 4e12, rel=0.01)
    assert part(step, "attention") == pytest.approx(kv / 4e12)
    assert step.interval_s == pytest.approx(step.seconds)


def test_an_ideal_prompt_computes_each_parameter_with_each_token() -> None:
    model, tokens = find_model("llama-3.1-8b"), 8192
    step = a_cost().step([Row(tokens, 0)])
    linear = 2 * model.body_params * tokens
    scores = 2 * model.layers * model.attended_dims * tokens * (tokens + 1) / 2
    assert part(step, "attention") == pytest.approx(scores / 1e15)
    head = part(step, "head")
    assert step.seconds - head == pytest.approx((linear + scores) / 1e15, rel=1e-3)


def test_a_batch_reads_weights_once_and_kv_of_each() -> None:
    one, many = a_cost().step([Row(1, 1000)]), a_cost().step([Row(1, 1000, 64)])
    assert part(many, "attention") == pytest.approx(64 * part(one, "attention"))
    assert part(many, "ffn") == pytest.approx(part(one, "ffn"), rel=0.05)
    assert part(many, "head") == pytest.approx(part(one, "head"), rel=0.05)


def test_rows_together_are_as_their_sum() -> None:
    together = a_cost().step([Row(1, 1000, 8)]).seconds
    apart = a_cost().step([Row(1, 1000)] * 8).seconds
    assert together == pytest.approx(apart)
    mixed = a_cost().step([Row(1, 1000, 8), Row(512, 100)]).seconds
    assert mixed >= max(together, a_cost().step([Row(512, 100)]).seconds)


def test_only_rows_that_sample_pay_for_the_head() -> None:
    assert part(a_cost().step([Row(512, 0, samples=False)]), "head") == 0
    assert part(a_cost().step([Row(512, 0)]), "head") > 0


def test_windows_read_and_compute_less() -> None:
    cost = a_cost("gpt-oss-120b")
    short, long = cost.step([Row(1, 127)]), cost.step([Row(1, 10_000)])
    per_key = 2 * 1024 / 4e12
    assert part(short, "attention") == pytest.approx(36 * 128 * per_key)
    assert part(long, "attention") == pytest.approx((18 * 128 + 18 * 10_001) * per_key)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_shares_the_work(tp: int) -> None:
    """Links of the ideal device are all but free; KV heads divide."""
    rows = [Row(4096, 0)]
    one, more = a_cost().step(rows), a_cost(layout=ParallelLayout(tp=tp)).step(rows)
    for name in ("projections", "ffn", "attention", "head"):
        assert part(more, name) == pytest.approx(part(one, name) / tp, rel=0.01)
    assert part(one, "collectives") == 0 < part(more, "collectives")


def test_replicated_kv_heads_are_read_on_every_rank() -> None:
    rows = [Row(1, 10_000, 8)]
    eight = part(a_cost(layout=ParallelLayout(tp=8)).step(rows), "attention")
    sixteen = part(a_cost(layout=ParallelLayout(tp=16)).step(rows), "attention")
    assert sixteen == pytest.approx(eight)


def test_stages_share_time_and_not_latency() -> None:
    rows = [Row(2048, 0)]
    one = a_cost().step(rows)
    for pp in (2, 4, 8):
        staged = a_cost(layout=ParallelLayout(pp=pp)).step(rows)
        assert staged.seconds >= one.seconds
        assert one.seconds / pp <= staged.interval_s < one.seconds
        assert staged.seconds >= staged.interval_s


def test_groups_share_sequences_and_experts() -> None:
    alone = a_cost("mixtral-8x7b").step([Row(1, 1000)])
    groups = a_cost("mixtral-8x7b", ParallelLayout(dp=8, ep=8)).step([Row(1, 1000, 8)])
    assert part(groups, "attention") == pytest.approx(part(alone, "attention"))
    assert part(groups, "projections") == pytest.approx(part(alone, "projections"))
    assert part(groups, "experts") < part(alone, "experts") * 1.05


def test_the_busiest_expert_rank_sets_the_pace() -> None:
    layout = ParallelLayout(dp=8, ep=8)
    rows = [Row(2048, 0, 8)]
    even = part(a_cost("mixtral-8x7b", layout).step(rows), "experts")
    skewed = part(a_cost("mixtral-8x7b", layout, skew=2.0).step(rows), "experts")
    assert skewed == pytest.approx(2 * even, rel=0.05)
    assert skewed <= 8 * even


def test_experts_touched_are_those_that_are_drawn() -> None:
    """Within 2 % of the mean of 400 draws."""
    rng = random.Random(5)
    for count, top_k, tokens in ((8, 2, 1), (8, 2, 5), (128, 8, 16), (256, 8, 64)):
        drawn = []
        for _ in range(400):
            chosen: set[int] = set()
            for _ in range(tokens):
                chosen.update(rng.sample(range(count), top_k))
            drawn.append(len(chosen))
        experts = Experts(count, top_k, 1, 0, 1)
        assert experts.touched(tokens) == pytest.approx(fmean(drawn), rel=0.02)
    assert Experts(8, 8, 1, 0, 1).touched(1) == 8
    assert Experts(8, 2, 1, 0, 1).touched(0) == 0
    assert Experts(256, 8, 1, 0, 1).touched(1) == pytest.approx(8)


def test_what_an_engine_adds_is_added() -> None:
    slow = Stack(
        name="slow", layer_s=1e-3, step_s=1e-2, sequence_s=1e-4, prompt_s=1e-1,
        expert_matmul={"bf16": 1.0}, expert_weights={"bf16": 1.0},
    )  # fmt: skip
    rows = [Row(1, 100, 5), Row(64, 0, 2)]
    added = a_cost(stack=slow).step(rows).seconds - a_cost().step(rows).seconds
    assert added == pytest.approx(32 * 1e-3 + 1e-2 + 7 * 1e-4 + 2 * 1e-1)


def test_communication_is_hidden_as_far_as_the_engine_says() -> None:
    layout, device = ParallelLayout(tp=8), find_device("h100")
    hidden = BARE.model_copy(update={"overlap": 0.75})
    rows = [Row(4096, 0)]
    seen = part(a_cost(layout=layout, device=device).step(rows), "collectives")
    rest = part(a_cost(layout=layout, device=device, stack=hidden).step(rows), "collectives")
    assert rest == pytest.approx(seen / 4)


def test_a_part_says_what_it_waits_for() -> None:
    layout = ParallelLayout(tp=8)
    step = a_cost(layout=layout, device=find_device("h100"), stack=find_stack("tuned")).step(
        [Row(1, 1000)]
    )
    bounds = {p.name: p.bound for p in step.parts}
    assert bounds["ffn"] == "memory"
    assert bounds["collectives"] == "network"
    assert bounds["layers"] == bounds["step"] == "fixed"
    prompt = {p.name: p.bound for p in a_cost().step([Row(8192, 0)]).parts}
    assert prompt["ffn"] == "compute"


@pytest.mark.parametrize(("isl", "chunk"), [(100, 512), (512, 512), (1300, 512), (1024.5, 512)])
def test_chunks_are_the_prompt(isl: float, chunk: int) -> None:
    rows = chunks(isl, chunk)
    assert sum(row.new for row in rows) == isl
    assert all(0 < row.new <= chunk for row in rows)
    assert [row.past for row in rows] == [i * chunk for i in range(len(rows))]
    assert [row.samples for row in rows] == [False] * (len(rows) - 1) + [True]


def test_one_client_meets_no_other_and_many_wait() -> None:
    cost = a_cost(device=find_device("h100"), stack=find_stack("vllm"))
    latencies = [closed_loop(cost, 1000, 200, clients) for clients in (1, 4, 16, 64)]
    alone = latencies[0]
    assert alone.tpot_s == pytest.approx(cost.step([Row(1, 1100)]).seconds, rel=1e-3)
    for few, many in pairwise(latencies):
        assert few.ttft_s < many.ttft_s
        assert few.tpot_s < many.tpot_s
        assert 0 <= few.prompts_busy < many.prompts_busy <= 0.95
