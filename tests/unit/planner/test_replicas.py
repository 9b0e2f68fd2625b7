"""What one replica can do, and what its links carry."""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist

import pytest

from eastwest.layout import ParallelLayout
from planner.cost import CostModel
from planner.hardware import Device, device_from, find_device
from planner.links import BUSY_MAX, Links
from planner.memory import kv_of_sequence, weights_per_rank
from planner.models import find_model
from planner.precision import Precision
from planner.replicas import MixedReplica, PromptReplica, token_period
from planner.stacks import find_stack
from planner.workload import RequestClass, Workload, steady

BF16 = Precision.named("bf16")
H100 = find_device("h100-sxm")


def a_cost(
    model: str = "llama-3.1-8b", layout: ParallelLayout | None = None, device: Device = H100
) -> CostModel:
    one = layout or ParallelLayout()
    return CostModel(find_model(model), one, BF16, device, find_stack("tuned"))


def a_mixed(
    cost: CostModel, workload: Workload, prompts: tuple[RequestClass, ...] = ()
) -> MixedReplica:
    return MixedReplica(cost, workload, prompts, 4096, 0.9, NormalDist().inv_cdf(0.9))


def test_a_larger_batch_serves_more_and_each_waits_longer() -> None:
    curve = a_mixed(a_cost(), steady(2000, 200)).curve
    assert len(curve) > 5
    for few, many in pairwise(curve):
        assert few.batch < many.batch
        assert few.rate < many.rate
        assert few.tpot_s < many.tpot_s
    assert all(point.tpot_s >= point.tpot_mean_s > 0 == point.ttft_s for point in curve)


def test_prompts_between_decode_steps_lengthen_them() -> None:
    workload = steady(2000, 200)
    decodes = a_mixed(a_cost(), workload)
    mixed = a_mixed(a_cost(), workload, workload.classes)
    for batch in (8.0, 32.0, 64.0):
        alone, both = decodes.operate(batch), mixed.operate(batch)
        assert both.tpot_s > alone.tpot_s
        assert both.ttft_s > 0
        assert 0 < both.prompt_share < 1
        assert both.rate == pytest.approx(batch / (200 * both.tpot_mean_s))


def test_the_point_that_serves_a_rate_is_the_smallest_and_within_the_most() -> None:
    replica = a_mixed(a_cost(), steady(2000, 200))
    most = replica.operate(48.0)
    for share in (0.1, 0.5, 0.9, 1.0):
        point = replica.at_rate(most.rate * share, most)
        assert point.rate >= most.rate * share
        assert point.batch <= most.batch
        smaller = replica.operate(point.batch * 0.98)
        assert smaller.rate < most.rate * share


def test_sharpening_meets_both_targets_and_serves_no_less() -> None:
    workload = steady(2000, 200)
    replica = a_mixed(a_cost(), workload, workload.classes)
    for ttft, tpot in ((0.5, 0.02), (0.2, 0.05), (5.0, 0.03)):
        near = replica.best_within(ttft, tpot)
        assert near is not None
        point = replica.sharpened(near, ttft, tpot)
        assert point.ttft_s <= ttft
        assert point.tpot_s <= tpot
        assert point.rate <= replica.rate_beyond(near) * (1 + 1e-9)
        reached = [p.rate for p in replica.curve if p.ttft_s <= ttft and p.tpot_s <= tpot]
        assert point.rate >= max(reached)
    assert replica.best_within(1e-3, 1.0) is None
    assert replica.best_within(10.0, 1e-4) is None


def test_where_one_sequence_a_group_fits_it_is_run() -> None:
    """Memory for eight sequences, one in each of eight groups."""
    model, layout, workload = (
        find_model("mixtral-8x7b"),
        ParallelLayout(dp=8, ep=8),
        steady(900, 100),
    )
    needed = weights_per_rank(model, layout, BF16)
    needed += 1.001 * kv_of_sequence(model, layout, BF16, workload.held)
    device = device_from(
        f"{{name: tight, like: h100-sxm, memory: {{bytes: {needed / 0.9}}}}}", "tight"
    )
    replica = a_mixed(a_cost("mixtral-8x7b", layout, device), workload)
    assert [point.batch for point in replica.curve] == [8.0]


def test_stages_decode_micro_batches_after_each_other() -> None:
    cost = a_cost("llama-3.1-70b", ParallelLayout(pp=4))
    one = token_period(cost, 1, 1000)
    four, many = token_period(cost, 4, 1000), token_period(cost, 64, 1000)
    assert one <= four * (1 + 1e-9) <= many * (1 + 1e-9)
    assert four < 1.5 * one


def test_prompts_are_served_in_the_time_that_they_take() -> None:
    cost = a_cost()
    replica = PromptReplica(cost, steady(4000, 200).classes, 16384)
    rate = replica.rate_within(1.0, 0.9, 1, 1.0)
    assert 0 < rate < 1 / replica.service.mean_s
    assert replica.ttft(rate, 0.9, 1, 1.0) <= 1.0 + 1e-5
    assert replica.ttft(rate * 1.01, 0.9, 1, 1.0) > 1.0
    assert replica.rate_within(1e-3, 0.9, 1, 1.0) == 0
    rates = [replica.rate_within(1.0, 0.9, n, 1.0) / n for n in (1, 2, 4, 16)]
    assert rates == sorted(rates)  # a shared queue waits less
    assert replica.rate_within(1.0, 0.9, 1, 3.0) < rate


def test_links_carry_what_a_request_computed() -> None:
    workload = steady(4000, 200, reuse=0.5)
    links = Links(find_model("llama-3.1-8b"), BF16, H100, 16, workload)
    assert links.request_bytes == pytest.approx(2000 * 131_072)
    assert links.kind == "scale-out"
    assert links.bytes_per_s == pytest.approx(5e10 * H100.efficiency.link)
    assert links.limit(4, 12) == links.limit(12, 4) == BUSY_MAX * 4 * links.bytes_per_s
    inside = Links(find_model("llama-3.1-8b"), BF16, H100, 8, workload)
    assert inside.kind == "scale-up"
    assert inside.bytes_per_s > links.bytes_per_s


def test_windows_bound_and_indexes_add_to_what_moves() -> None:
    workload = steady(4000, 200)
    windowed = Links(find_model("gpt-oss-120b"), BF16, H100, 8, workload)
    assert windowed.request_bytes == pytest.approx(2 * 1024 * 18 * (4000 + 128))
    plain = Links(find_model("deepseek-v3"), BF16, H100, 8, workload).request_bytes
    sparse = Links(find_model("deepseek-v3.2"), BF16, H100, 8, workload).request_bytes
    assert sparse - plain == pytest.approx(61 * 128 * 4000)


def test_only_the_last_layer_is_waited_for_unless_the_link_is_slow() -> None:
    links = Links(find_model("llama-3.1-8b"), BF16, H100, 16, steady(4000, 200))
    whole = links.request_bytes / links.bytes_per_s
    assert links.exposed_s(1, 1, prompt_s=10 * whole) == pytest.approx(whole / 32)
    assert links.exposed_s(1, 1, prompt_s=whole / 4) == pytest.approx(whole * 3 / 4)
    assert links.exposed_s(2, 8, prompt_s=10.0) == pytest.approx(whole / 2 / 32)
