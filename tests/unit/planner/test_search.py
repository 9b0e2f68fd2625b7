"""The search against trying everything, and what holds for every split that it returns."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from planner.ask import ask
from planner.hardware import device_from
from planner.planning import Question
from planner.replicas import MixedReplica, Operating
from planner.search import PROMPT_CHUNK_TOKENS, Search, cut
from planner.split import Mode, Split
from planner.workload import steady

# Refinement ends within 1/256 of a doubling of the batch, and rates of prompts within 1/16384 of
# the highest; what is tried here has steps of its own.
TOLERANCE = 0.01


def a_question(
    model: str,
    device: str,
    devices: int,
    lengths: tuple[int, int],
    targets: tuple[float, float],
    *,
    percentile: float = 0.9,
    spread: float = 0.0,
    reuse: float = 0.0,
    cv: float = 1.0,
) -> Question:
    return ask(
        model, device, devices=devices, ttft_s=targets[0], tpot_s=targets[1],
        percentile=percentile,
        workload=steady(*lengths, spread=spread, reuse=reuse, arrival_cv=cv),
    )  # fmt: skip


def a_search(question: Question) -> Search:
    q = question
    return Search(q.model, q.device, q.precision, q.stack, q.devices, q.workload, q.targets)


# model, device, devices, (isl, osl), (TTFT, TPOT), and what else differs.
_ASKED: dict[str, tuple[str, str, int, tuple[int, int], tuple[float, float], dict[str, Any]]] = {
    "8b on 4": ("llama-3.1-8b", "h100", 4, (2000, 200), (0.6, 0.03), {}),
    "8b on 8, tight": ("llama-3.1-8b", "h100", 8, (8000, 500), (1.0, 0.02), {}),
    "8b on 12, short": ("llama-3.1-8b", "h100", 12, (500, 100), (0.08, 0.02), {}),
    "70b on 8": ("llama-3.1-70b", "h100", 8, (4000, 500), (0.6, 0.03), {}),
    "70b on 16, spread": (
        "llama-3.1-70b", "h100", 16, (4000, 500), (1.5, 0.0167), {"spread": 0.3},
    ),
    "70b on 12, bursts": (
        "llama-3.1-70b", "h100", 12, (100, 20), (10, 0.1), {"spread": 0.3, "cv": 3},
    ),
    "mixtral on 8": ("mixtral-8x7b", "h100", 8, (2000, 500), (0.3, 0.02), {"reuse": 0.5}),
    "mixtral on 16": (
        "mixtral-8x7b", "h200", 16, (100, 200), (10, 0.03), {"percentile": 0.5, "cv": 3},
    ),
    "gpt-oss on 2": (
        "gpt-oss-120b", "h200", 2, (8000, 1000), (2, 0.03), {"percentile": 0.5, "spread": 0.3},
    ),
    "gpt-oss on 4": (
        "gpt-oss-120b", "h200", 4, (2000, 200), (0.08, 0.015), {"percentile": 0.5, "cv": 3},
    ),
    "30b-a3b on 8": (
        "qwen3-30b-a3b", "h100", 8, (100, 20), (10, 0.1), {"percentile": 0.99, "spread": 0.3},
    ),
    "deepseek on 16": ("deepseek-v3", "h200", 16, (4000, 500), (2, 0.05), {}),
}  # fmt: skip
QUESTIONS = {name: a_question(*asked[:-1], **asked[-1]) for name, asked in _ASKED.items()}


@cache
def searched(name: str) -> Search:
    return a_search(QUESTIONS[name])


def furthest(replica: MixedReplica, ttft_s: float, tpot_s: float) -> Operating | None:
    """The point of the highest rate within both targets, by trying batches and halving."""
    best: Operating | None = None
    if not replica.curve:
        return None
    low, high = replica.curve[0].batch, replica.curve[-1].batch
    batches = [low * (high / low) ** (i / 12) for i in range(13)] if high > low else [low]
    points = [replica.operate(batch) for batch in batches]

    def fits(point: Operating) -> bool:
        return point.tpot_s <= tpot_s and point.ttft_s <= ttft_s

    for i, point in enumerate(points):
        if not fits(point):
            continue
        best = point if best is None else max(best, point, key=lambda p: p.rate)
        if i + 1 == len(points) or fits(points[i + 1]):
            continue
        low, high = batches[i], batches[i + 1]
        for _ in range(8):
            middle = replica.operate((low + high) / 2)
            if fits(middle):
                low, best = middle.batch, max(best, middle, key=lambda p: p.rate)
            else:
                high = middle.batch
    return best


def best_pair(search: Search) -> float:
    """The rate of the best disaggregated split: every pair of layouts, every number of each."""
    t, cv, most = search.targets, search.workload.arrival_cv, 0.0
    decodes = [search.replica(layout) for layout in search.layouts]
    points = [furthest(d, math.inf, t.tpot_s) for d in decodes]
    for layout in search.layouts:
        prompts = search.prompts(layout)
        room = search.devices // prompts.devices
        rates = [prompts.rate_within(t.ttft_s, t.percentile, x, cv) for x in range(1, room + 1)]
        for decode, point in zip(decodes, points, strict=True):
            if point is None:
                continue
            for x, rate in enumerate(rates, 1):
                y = (search.devices - x * prompts.devices) // decode.devices
                limit = search.links.limit(x * prompts.devices, y * decode.devices)
                link = limit / search.links.request_bytes
                most = max(most, min(rate, y * point.rate, link))
    return most


def best_aggregated(search: Search) -> float:
    t, most = search.targets, 0.0
    for layout in search.layouts:
        for chunk in (1024, 4096, 16384):
            replica = search.replica(layout, search.workload.classes, chunk)
            point = furthest(replica, t.ttft_s, t.tpot_s)
            if point is not None:
                most = max(most, search.devices // replica.devices * point.rate)
    return most


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_pair_of_pools_is_better_than_the_one_found(name: str) -> None:
    search = searched(name)
    found = search.best(Mode.DISAGGREGATED)
    assert (found.rate if found else 0.0) >= best_pair(search) * (1 - TOLERANCE)


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_aggregated_replica_is_better_than_the_one_found(name: str) -> None:
    search = searched(name)
    found = search.best(Mode.AGGREGATED)
    assert (found.rate if found else 0.0) >= best_aggregated(search) * (1 - TOLERANCE)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_split_meets_its_targets_and_uses_what_there_is(name: str, mode: Mode) -> None:
    search, question = searched(name), QUESTIONS[name]
    split = search.best(mode)
    if split is None:
        return
    holds(split, search, question)


def holds(split: Split, search: Search, question: Question) -> None:
    t = question.targets
    assert split.rate > 0
    assert 0 < split.tpot_mean_s <= split.tpot_s <= t.tpot_s * (1 + 1e-9)
    assert 0 < split.ttft_s <= t.ttft_s * (1 + 1e-5)
    assert split.devices <= question.devices
    assert all(pool.layout in search.layouts for pool in split.pools)
    assert all(0 < pool.load <= 1 + 1e-9 for pool in split.pools)
    assert 0 <= split.prompt_share < 1
    assert split.link_bytes_per_s <= split.link_limit_bytes_per_s * (1 + 1e-9)
    assert search.rate_of(split) == pytest.approx(split.rate, rel=TOLERANCE)


def test_modes_have_the_pools_that_they_are_named_for() -> None:
    search = searched("70b on 16, spread")
    roles = {mode: search.best(mode) for mode in Mode}
    for mode, split in roles.items():
        assert split is not None
        assert split.mode is mode
        expected = ["aggregated"] if mode is Mode.AGGREGATED else ["prefill", "decode"]
        assert [pool.role for pool in split.pools] == expected


def test_conditional_keeps_the_short_prompts_where_they_decode() -> None:
    question = a_question("llama-3.1-8b", "h100", 8, (4000, 200), (1.0, 0.05), spread=1.0)
    search = a_search(question)
    split = search.best(Mode.CONDITIONAL)
    assert split is not None
    lengths = sorted(c.fresh for c in question.workload.classes)
    assert lengths[0] <= split.local_tokens < lengths[-1]
    assert split.prompt_share > 0
    pure = search.best(Mode.DISAGGREGATED)
    assert pure is not None
    per_request = split.link_bytes_per_s / split.rate
    assert per_request < pure.link_bytes_per_s / pure.rate


@pytest.mark.parametrize("name", ["8b on 8, tight", "70b on 8", "mixtral on 8", "30b-a3b on 8"])
def test_looser_targets_and_more_devices_never_serve_less(name: str) -> None:
    question = QUESTIONS[name]
    t, search = question.targets, searched(name)
    looser = [
        replace(question, targets=replace(t, ttft_s=t.ttft_s * 1.3)),
        replace(question, targets=replace(t, tpot_s=t.tpot_s * 1.3)),
        replace(question, targets=replace(t, percentile=t.percentile - 0.05)),
        replace(question, devices=question.devices + 1),
        replace(question, devices=question.devices * 2),
        replace(question, workload=replace(question.workload, arrival_cv=0.7)),
    ]
    for easier in looser:
        if easier.targets.percentile < 0.5:
            continue
        other = a_search(easier)
        for mode in (Mode.AGGREGATED, Mode.DISAGGREGATED):
            before, after = search.best(mode), other.best(mode)
            if before is not None:
                assert after is not None
                assert after.rate >= before.rate * (1 - TOLERANCE)


def test_shorter_prompts_and_answers_are_served_at_a_higher_rate() -> None:
    question = QUESTIONS["8b on 8, tight"]
    for easier in (question.workload.scaled(isl=0.5), question.workload.scaled(osl=0.5)):
        for mode in (Mode.AGGREGATED, Mode.DISAGGREGATED):
            less = searched("8b on 8, tight").best(mode)
            more = a_search(replace(question, workload=easier)).best(mode)
            assert less is not None
            assert more is not None
            assert more.rate > less.rate


def a_device(link_bytes_per_s: float) -> str:
    return (
        "{name: thin, like: h100-sxm, scale_up: {domain: 1, bytes_per_s: 1.0e+10}, "
        f"scale_out: {{bytes_per_s: {link_bytes_per_s}}}}}"
    )


def test_a_thin_link_bounds_the_split_and_is_filled_from_both_sides() -> None:
    """The best is then about as many senders as receivers."""
    wide = a_question("llama-3.1-8b", "h100", 8, (4000, 200), (2.0, 0.05))
    thin = replace(wide, device=device_from(a_device(5e8), "thin"))
    search = a_search(thin)
    split = search.best(Mode.DISAGGREGATED)
    assert split is not None
    assert split.bound == "link"
    assert split.link_bytes_per_s == pytest.approx(split.link_limit_bytes_per_s)
    assert [pool.devices for pool in split.pools] == [4, 4]
    holds(split, search, thin)
    assert split.rate >= best_pair(search) * (1 - TOLERANCE)


def test_kv_that_comes_late_is_part_of_the_time_per_token() -> None:
    """One pair whose link takes longer than the prompt: the target leaves that much less."""
    near = a_question("llama-3.1-8b", "h100", 2, (4000, 20), (30.0, 0.03))
    thin = replace(near, device=device_from(a_device(2e9), "thin"))
    search = a_search(thin)
    split = search.best(Mode.DISAGGREGATED)
    assert split is not None
    holds(split, search, thin)
    free = a_search(near).best(Mode.DISAGGREGATED)
    assert free is not None
    assert split.rate < free.rate


def test_only_layouts_that_are_allowed_are_tried() -> None:
    question = QUESTIONS["70b on 8"]
    some = set(searched("70b on 8").layouts[:2])
    q = question
    narrow = Search(
        q.model, q.device, q.precision, q.stack, q.devices, q.workload, q.targets, among=some
    )
    assert set(narrow.layouts) == some
    split = narrow.best(Mode.AGGREGATED)
    assert split is None or split.pools[0].layout in some


def test_a_frontier_falls_from_fast_to_cheap() -> None:
    search = searched("70b on 8")
    fastest = search.fastest()[1]
    tpots = [fastest * 1.5**i for i in range(1, 9)]
    for mode in Mode:
        splits = search.frontier(mode, tpots)
        for fast, cheap in pairwise(splits):
            assert fast.tokens_per_s_per_user >= cheap.tokens_per_s_per_user
            assert fast.tokens_per_s_per_device < cheap.tokens_per_s_per_device


def test_nothing_meets_what_is_faster_than_the_fastest() -> None:
    question = QUESTIONS["70b on 8"]
    ttft, tpot = searched("70b on 8").fastest()
    for targets in (
        replace(question.targets, ttft_s=ttft * 0.9), replace(question.targets, tpot_s=tpot * 0.9),
    ):  # fmt: skip
        search = a_search(replace(question, targets=targets))
        assert search.best(Mode.DISAGGREGATED) is None
        assert search.best(Mode.CONDITIONAL) is None


def test_a_split_that_does_not_fit_serves_nothing() -> None:
    split = searched("8b on 4").best(Mode.AGGREGATED)
    assert split is not None
    assert split.pools[0].layout.world_size == 1
    assert searched("70b on 8").rate_of(split) == 0


def test_a_cut_takes_the_shortest_and_keeps_equals_together() -> None:
    classes = steady(1000, 100, spread=0.5).classes
    by_length = sorted(classes, key=lambda c: c.fresh)
    local, remote = cut(by_length, 0.25)
    assert len(local) + len(remote) == len(classes)
    assert max(c.fresh for c in local) < min(c.fresh for c in remote)
    assert cut(by_length, 0.0) == ([], by_length)
    assert cut(by_length, 1.0) == (by_length, [])
    alike = steady(1000, 100).classes
    assert cut(alike, 0.5) == ([], list(alike))


def test_prompt_chunks_are_those_of_the_pools() -> None:
    split = searched("70b on 8").best(Mode.DISAGGREGATED)
    assert split is not None
    assert split.pools[0].chunk_tokens == PROMPT_CHUNK_TOKENS
