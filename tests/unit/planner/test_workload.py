"""Workloads: classes that keep the means, and what follows from a distribution of lengths."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from eastwest.errors import ConfigError
from planner.workload import (
    CLASSES_MAX,
    TOKENS_MAX,
    RequestClass,
    Workload,
    from_requests,
    steady,
)


def requests(count: int, seed: int = 1) -> list[tuple[float, float, float]]:
    """Long-tailed lengths, with some of each prompt cached."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        isl = float(max(1, int(rng.lognormvariate(6, 1.2))))
        rows.append(
            (isl, float(max(1, int(rng.lognormvariate(4, 1)))), float(rng.randrange(int(isl))))
        )
    return rows


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 63, 64, 65, 1000])
def test_classes_of_requests_keep_all_means(count: int) -> None:
    rows = requests(count)
    workload = from_requests(rows)
    assert len(workload.classes) <= min(CLASSES_MAX, count)
    assert sum(c.share for c in workload.classes) == pytest.approx(1)
    assert workload.isl == pytest.approx(fmean(r[0] for r in rows))
    assert workload.osl == pytest.approx(fmean(r[1] for r in rows))
    cached = sum(c.cached * c.share for c in workload.classes)
    assert cached == pytest.approx(fmean(r[2] for r in rows))
    assert all(c.share > 0 for c in workload.classes)


def test_classes_follow_the_distribution() -> None:
    rows = requests(4000)
    workload = from_requests(rows)
    fresh = sorted(isl - cached for isl, _, cached in rows)
    ninth = fresh[int(0.9 * len(fresh))]
    beyond = sum(c.share for c in workload.classes if c.fresh > ninth)
    assert beyond == pytest.approx(0.1, abs=0.07)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 5.0])
def test_lengths_about_a_mean_keep_it(spread: float) -> None:
    workload = steady(10_000, 1_000, spread=spread, reuse=0.25)
    assert workload.isl == pytest.approx(10_000)
    assert workload.osl == pytest.approx(1_000)
    assert workload.fresh == pytest.approx(7_500, rel=1e-3)
    assert sum(c.share for c in workload.classes) == pytest.approx(1)
    assert len(workload.classes) == (15 if spread else 1)


def test_the_spread_is_about_what_was_asked() -> None:
    """Within a third: a few equally likely values have less than the whole tail."""
    classes = steady(1000, 100, spread=0.3).classes
    for values, mean in (([c.isl for c in classes], 1000), ([c.osl for c in classes], 100)):
        deviation = math.sqrt(fmean((v - mean) ** 2 for v in values))
        assert deviation == pytest.approx(0.3 * mean, rel=0.34)


def test_context_counts_each_class_by_how_long_it_decodes() -> None:
    workload = Workload((RequestClass(100, 10, 0, 0.5), RequestClass(1000, 90, 0, 0.5)))
    assert workload.context == pytest.approx((105 * 10 + 1045 * 90) / 100)
    assert workload.held == pytest.approx((110 * 10 + 1090 * 90) / 100)
    assert workload.longest == 1090


def test_at_least_the_last_token_of_a_prompt_is_computed() -> None:
    assert RequestClass(512, 10, 512, 1.0).fresh == 1
    assert RequestClass(512, 10, 500, 1.0).fresh == 12


def test_scaling_keeps_shares_and_what_is_reused() -> None:
    workload = steady(2000, 100, spread=0.3, reuse=0.5, arrival_cv=2.0).scaled(isl=1.5, osl=0.5)
    assert workload.isl == pytest.approx(3000)
    assert workload.osl == pytest.approx(50)
    assert workload.fresh == pytest.approx(1500)
    assert workload.arrival_cv == 2.0


@pytest.mark.parametrize(
    ("isl", "osl", "changed", "message"),
    [
        (100, 10, {"reuse": 1.0}, "reused share of prompts is 1; allowed: from 0, below 1"),
        (100, 10, {"reuse": -0.1}, "reused share"),
        (100, 10, {"spread": 6.0}, "spread of lengths is 6"),
        (100, 10, {"spread": math.nan}, "spread of lengths is nan"),
        (100, 10, {"arrival_cv": 0.0}, "arrival_cv is 0; allowed: above 0, to 20"),
        (100, 10, {"arrival_cv": math.nan}, "arrival_cv is nan"),
        (TOKENS_MAX + 1, 10, {}, "isl and osl from 1 to"),
    ],
)
def test_what_makes_no_workload_is_refused(
    isl: float, osl: float, changed: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        steady(isl, osl, **changed)


@pytest.mark.parametrize(
    "bad", [(0, 1, 0), (1, 0, 0), (1, 1, 2), (1, 1, -1), (math.nan, 1, 0), (1, math.inf, 0)]
)
def test_a_class_without_sense_is_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="a request class has isl"):
        Workload((RequestClass(*bad, 1.0),))


def test_no_requests_are_no_workload() -> None:
    with pytest.raises(ConfigError, match="no requests"):
        from_requests([])
    with pytest.raises(ConfigError, match="at least one class"):
        Workload(())
