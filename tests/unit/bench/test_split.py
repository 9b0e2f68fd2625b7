"""`eastwest bench split`, the parts that only decide."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.split.journal import Journal
from bench.split.load import Load, check_load
from bench.split.points import PARTS, PERCENTILES, Point, Sample, point_of
from bench.split.search import RateSearch
from bench.split.splits import Split, all_splits, split_of
from bench.split.sweep import Found, Rules, sweep
from bench.split.verdict import bottleneck, verdict
from eastwest.errors import ConfigError
from eastwest.timing import SecondTokenParts, Timing, TtftParts
from eastwest.types import Role, Slo
from planner.traces import TraceRow

SLO = Slo(1.0, 0.1)


def test_splits_are_called_as_people_call_them() -> None:
    assert split_of("1p3d") == Split(prefill=1, decode=3)
    assert split_of(" 4A+ ") == Split(aggregated=4, conditional=True)
    assert split_of("12P3D+").replicas == ((Role.PREFILL, 12), (Role.DECODE, 3))
    names = [split.name for split in all_splits(3)]
    assert names == ["3A", "3A+", "1P2D", "1P2D+", "2P1D", "2P1D+"]
    assert all(split_of(name).name == name for name in names)
    for bad in ("", "P", "0A", "1P0D", "1P", "3D", "1P1D++", "1A1P", "99999A", "١A"):
        with pytest.raises(ConfigError, match="1P3D"):
            split_of(bad)
    with pytest.raises(ConfigError, match="at least 2"):
        all_splits(1)


@given(st.floats(0.01, 1e4), st.floats(0.1, 100), st.floats(1.01, 2))
def test_a_search_ends_at_the_border(border: float, start: float, within: float) -> None:
    search, tried = RateSearch(start, within), 0
    while (rate := search.next) is not None:
        search.tell(rate, kept=rate <= border)
        tried += 1
        assert tried < 60
    if border >= start / 2**10:
        assert search.low <= border < search.high
        assert search.high / search.low <= within * (1 + 1e-9)
    else:
        assert search.low == 0.0


def test_a_search_does_not_look_where_it_is_hopeless() -> None:
    search = RateSearch(8.0, 1.1, hopeless_below=3.0)
    for rate in (8.0, 4.0):
        assert search.next == rate
        search.tell(rate, kept=False)
    assert search.next is None
    assert search.low == 0.0
    everything = RateSearch(1.0, 1.1, most=4.0)
    while (found := everything.next) is not None:
        everything.tell(found, kept=True)
    assert everything.low == 4.0


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 3.0])
def test_a_load_is_what_was_asked_for(burstiness: float) -> None:
    load = Load(1000, 100, spread=0.5, burstiness=burstiness)
    rows = load.rows(20.0, 20_000, seed=1)
    assert rows == load.rows(20.0, 20_000, seed=1) != load.rows(20.0, 20_000, seed=2)
    times = [row.at_s or 0.0 for row in rows]
    assert times == sorted(times)
    gaps = [b - a for a, b in pairwise(times)]
    assert 1 / statistics.fmean(gaps) == pytest.approx(20.0, rel=0.05)
    assert statistics.stdev(gaps) * 20 == pytest.approx(burstiness, rel=0.1)
    lengths = [row.isl for row in rows]
    assert statistics.fmean(lengths) == pytest.approx(1000, rel=0.05)
    assert statistics.stdev(lengths) == pytest.approx(500, rel=0.1)


def test_prompts_leave_room_for_their_answers() -> None:
    for row in Load(900, 200, spread=2.0, context_tokens=1024).rows(1.0, 500, seed=3):
        assert row.isl + row.osl <= 1024
        assert min(row.isl, row.osl) >= 1


def test_a_trace_is_stretched_to_the_rate_and_keeps_what_prompts_share() -> None:
    trace = tuple(TraceRow(600 + i, 10, 7.0 + i * i, (1, i)) for i in range(100))
    load = Load(1, 1, trace=trace)
    rows = load.rows(4.0, 50, seed=1)
    assert len(rows) == 50
    assert rows[0].at_s == 0.0
    assert rows[-1].at_s == pytest.approx(49 / 4.0)
    first = trace.index(next(t for t in trace if t.isl == rows[0].isl))
    assert [row.blocks for row in rows] == [t.blocks for t in trace[first : first + 50]]
    assert len(load.rows(4.0, 500, seed=1)) == 100


@pytest.mark.parametrize(
    ("load", "named"),
    [
        (Load(0, 10), "isl is 0"),
        (Load(10, 0.5), "osl is 0.5"),
        (Load(2000, 10, context_tokens=1024), "isl is 2000"),
        (Load(10, 10, spread=-1), "spread"),
        (Load(10, 10, burstiness=0), "burstiness"),
        (Load(10, math.nan), "osl"),
    ],
)
def test_a_load_that_cannot_be_is_refused(load: Load, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_load(load)


def a_sample(at_s: float, ttft_s: float = 0.5, tpot_s: float = 0.05) -> Sample:
    parts = (0.0, ttft_s, 0.0, 0.0, 0.0)
    return Sample(at_s, ttft_s, tpot_s, parts, 0.0, prompt=100, output=10, cached=25)


def test_a_sample_is_what_its_timing_says() -> None:
    ns = 1_000_000
    first = TtftParts(1 * ns, 20 * ns, 3 * ns, 400 * ns, 5 * ns)
    timing = Timing(first, SecondTokenParts(7 * ns, 0, 0, 8 * ns), 1329 * ns)
    sample = Sample.of(2.0, timing, prompt=100, output=10, computed=75)
    assert sum(sample.parts) == pytest.approx(sample.ttft_s) == pytest.approx(0.429)
    assert sample.tpot_s == pytest.approx(0.1)
    assert sample.exposed_s == pytest.approx(0.007)
    assert sample.cached == 25


def test_a_point_counts_all_that_were_asked_but_for_the_first() -> None:
    asked = [float(i) for i in range(20)]
    samples = [a_sample(at) for at in asked if at not in (5.0, 6.0)]
    samples[0] = a_sample(0.0, ttft_s=9.0)  # while it warms up
    samples[-1] = a_sample(19.0, ttft_s=2.0, tpot_s=0.2)
    samples[-2] = a_sample(18.0, tpot_s=0.2)
    point = point_of("1P1D", 1.0, 1, asked_s=asked, samples=samples, slo=SLO)
    assert (point.requests, point.failed) == (18, 2)
    assert point.attained == pytest.approx(14 / 18)
    assert point.missed_ttft == pytest.approx(3 / 18)
    assert point.missed_tpot == pytest.approx(2 / 18)
    assert point.ttft_s == (0.5,) * (len(PERCENTILES) - 2) + (2.0, 2.0)
    assert point.cached_share == 0.25
    assert point.tokens_per_s == pytest.approx(160 / 17)
    low, high = point.interval
    assert 0.5 < low < point.attained < high < 1.0


def test_a_run_without_answers_kept_nothing() -> None:
    point = point_of("1P1D", 1.0, 1, asked_s=[0.0, 1.0], samples=[], slo=SLO)
    assert (point.attained, point.missed_ttft, point.failed) == (0.0, 1.0, 2)
    nobody = point_of("1P1D", 1.0, 1, asked_s=[], samples=[], slo=SLO)
    assert nobody.interval == (0.0, 1.0)


def a_point(split: str, rate: float, attained: float, seed: int = 1, **changes: Any) -> Point:
    point = point_of(split, rate, seed, asked_s=[0.0, 1.0], samples=[a_sample(1.0)], slo=SLO)
    return replace(point, attained=attained, **changes)


def test_a_journal_goes_on_where_it_stood(tmp_path: Path) -> None:
    path, measured = tmp_path / "journal", {"isl": 10}
    journal = Journal(path, measured)
    points = [a_point("1P1D", 1.0, 0.5), a_point("1P1D", 1 / 3, 1.0, seed=2)]
    for point in points:
        journal.add(point)
    with path.open("a") as file:
        file.write('{"split": "1P')  # broken off
    again = Journal(path, measured)
    assert again.points == points
    assert again.find("1P1D", 1 / 3, 2) == points[1]
    assert again.find("1P1D", 1.0, 2) is None
    again.add(a_point("2A", 1.0, 0.5))
    assert len(Journal(path, measured).points) == 3
    with pytest.raises(ConfigError, match="another measurement"):
        Journal(path, {"isl": 11})
    path.write_text(path.read_text().replace('"rate": 1.0', '"rate": "fast"'))
    with pytest.raises(ConfigError, match="line 2 is no point"):
        Journal(path, measured)
    with pytest.raises(ConfigError, match="cannot be used"):
        Journal(tmp_path, measured)


async def test_a_sweep_asks_nothing_twice_and_gives_up_what_is_hopeless(tmp_path: Path) -> None:
    borders = {"2A": 10.0, "1P1D": 3.0, "1P1D+": 12.0}
    asked: list[tuple[str, float, int]] = []

    async def run(split: Split, rate: float, seed: int) -> Point:
        asked.append((split.name, rate, seed))
        return a_point(split.name, rate, 0.95 if rate <= borders[split.name] else 0.5, seed)

    splits = [split_of(name) for name in borders]
    rules = Rules(0.9, seeds=2, start=1.0, within=1.05)
    journal = Journal(tmp_path / "j", {})
    found = await sweep(splits, run, rules, journal, lambda point: None)
    assert len(asked) == len(set(asked))
    means = {f.split.name: f.mean for f in found}
    assert means["2A"] == pytest.approx(10.0, rel=0.05)
    assert means["1P1D+"] == pytest.approx(12.0, rel=0.05)
    before = len(asked)
    again = await sweep(splits, run, rules, Journal(tmp_path / "j", {}), lambda point: None)
    assert again == found
    assert len(asked) == before
    hopeless = await sweep(
        [split_of("2A"), split_of("1P1D")], run, replace(rules, start=8.0),
        Journal(None, {}), lambda point: None,
    )  # fmt: skip
    assert hopeless[1].goodput == (0.0, 0.0)
    stopped = a_point("2A", 1.0, 1.0, stopped=True)
    assert not rules.kept(stopped)


def found_of(name: str, goodput: float, **beyond: Any) -> Found:
    rate = goodput or 1.0
    points = (a_point(name, rate, 0.95), a_point(name, 2 * rate, 0.5, **beyond))
    return Found(split_of(name), (goodput,), points)


def test_the_verdict_says_first_where_aggregated_serving_wins() -> None:
    wins = verdict([found_of("2A", 10.0), found_of("1P1D", 9.7), found_of("1P1D+", 5.0)])
    assert wins.headline == (
        "aggregated serving wins: 2A: 10 requests/s within the targets; as good: 1P1D"
    )
    split = verdict([found_of("2A", 8.0), found_of("1P1D", 12.0)])
    assert split.headline == (
        "best is 1P1D: 12 requests/s within the targets, 1.50 times aggregated serving"
    )
    assert verdict([found_of("1P1D", 12.0)]).over_aggregated is None
    assert verdict([found_of("1P1D", 0.0)]).headline.startswith("no split keeps")


def test_what_a_split_is_short_of() -> None:
    parts = dict.fromkeys(PARTS, 0.0)

    def short_of(name: str, missed: str, part: str = "queue", exposed_s: float = 0.0) -> str:
        values = tuple({**parts, part: 1.0}.values())
        misses = {"missed_ttft": 0.0, "missed_tpot": 0.0, missed: 0.5}
        found = found_of(name, 1.0, parts_s=values, exposed_s=exposed_s, **misses)
        return bottleneck(found.beyond, found.split)

    assert short_of("1P1D", "missed_ttft") == "prefill"
    assert short_of("1P1D", "missed_ttft", "reservation") == "decode memory"
    assert short_of("1P1D", "missed_ttft", "admission") == "router"
    assert short_of("1P1D", "missed_tpot") == "decode"
    assert short_of("1P1D", "missed_tpot", exposed_s=9.0) == "link"
    assert short_of("2A", "missed_tpot") == "decode beside prompts"
    assert bottleneck(None, split_of("2A")) == ""
