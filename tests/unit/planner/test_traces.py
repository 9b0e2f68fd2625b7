"""Traces: both published formats, rows that make no sense, reuse, and how requests arrive."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from eastwest.errors import ConfigError
from planner.traces import Trace, TraceRow, read_trace
from tests.unit.planner.reference import reference

MOONCAKE = """\
{"timestamp": 0, "input_length": 1200, "output_length": 50, "hash_ids": [1, 2, 3]}
{"timestamp": 3000, "input_length": 1300, "output_length": 60, "hash_ids": [1, 2, 4]}

{"timestamp": 6000, "input_length": 600, "output_length": 10, "hash_ids": [1, 2]}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.9799600,110,27
"""


def a_file(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "trace"
    path.write_text(text, encoding=encoding)
    return path


def test_mooncake(tmp_path: Path) -> None:
    trace = read_trace(a_file(tmp_path, MOONCAKE))
    assert not trace.skipped
    assert trace.rows[1] == TraceRow(1300, 60, 3.0, (1, 2, 4))
    assert trace.rate == pytest.approx(2 / 6)
    cached = trace.workload(cached=True)
    # Of the second 1,024 tokens, of the third all but the last.
    assert cached.fresh == pytest.approx((1200 + (1300 - 1024) + 1) / 3)
    assert trace.workload().fresh == pytest.approx((1200 + 1300 + 600) / 3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_azure(tmp_path: Path, encoding: str) -> None:
    """With a byte order mark, too, as spreadsheets write it."""
    trace = read_trace(a_file(tmp_path, AZURE, encoding))
    assert not trace.skipped
    assert [(row.isl, row.osl) for row in trace.rows] == [(4808, 10), (3180, 8), (110, 27)]
    assert trace.rate == pytest.approx(1.0)


def test_times_may_have_a_zone(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.97+02:00,1,1\n2024-05-09 22:00:03+00:00,1,1\n"
    )
    trace = read_trace(a_file(tmp_path, text))
    assert not trace.skipped
    assert trace.rate == pytest.approx(1 / 2.03)


def test_columns_may_be_named(tmp_path: Path) -> None:
    path = a_file(tmp_path, "mine,yours\n10,20\n")
    assert read_trace(path, "mine", "yours").rows == (TraceRow(10, 20, None),)
    with pytest.raises(ConfigError, match="it has no column input_length or ContextTokens"):
        read_trace(path)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"input_length": 0, "output_length": 1}', "input_length is 0; allowed: 1 to"),
        ('{"input_length": -5, "output_length": 1}', "input_length is -5"),
        ('{"input_length": "many", "output_length": 1}', "'many', not a number of tokens"),
        ('{"input_length": 1.5, "output_length": 1}', "1.5, not a number of tokens"),
        ('{"input_length": Infinity, "output_length": 1}', "inf, not a number of tokens"),
        ('{"input_length": NaN, "output_length": 1}', "nan, not a number of tokens"),
        ('{"input_length": true, "output_length": 1}', "True, not a number of tokens"),
        ('{"input_length": null, "output_length": 1}', "None, not a number of tokens"),
        ('{"input_length": 1}', "no column output_length or"),
        ('{"input_length": 1, "output_length": 99999999}', "output_length is 99999999; allowed"),
        ('{"input_length": 1, "output_length": 1, "hash_ids": 3}', "hash_ids is not a list"),
        ('{"input_length": 1, "output_length": 1, "hash_ids": ["a"]}', "hash_ids is not a list"),
        ('{"input_length": 1, "output_length": 1, "timestamp": "noon"}', "neither a number nor"),
        ('{"input_length": 1, "output_length": 1, "timestamp": NaN}', "neither a number nor"),
        ("[1, 2]", "it is not a JSON object"),
        ("{oops", "it is not JSON"),
    ],
)
def test_a_broken_row_is_told_by_its_line(tmp_path: Path, row: str, why: str) -> None:
    trace = read_trace(a_file(tmp_path, f"{MOONCAKE}{row}\n{MOONCAKE}"))
    assert len(trace.rows) == 6
    (told,) = trace.skipped
    assert told.startswith("line 5: ")
    assert why in told


def test_a_broken_line_of_a_table_is_told(tmp_path: Path) -> None:
    text = f"{AZURE}2023-11-16 18:17:06,5\n2023-11-16 18:17:06,5,x\n1,2,3,4\n{'9' * 200_000}\n"
    trace = read_trace(a_file(tmp_path, text))
    assert len(trace.rows) == 3
    numbers = [line.split(":")[0] for line in trace.skipped]
    assert numbers == ["line 5", "line 6", "line 7", "line 8"]
    assert "number of columns" in trace.skipped[0]
    assert "'x', not a number" in trace.skipped[1]


@pytest.mark.parametrize("text", ["", "\n", "a,b\n1,2\n", "{}\n{}\n", "\0\0"])
def test_a_file_without_a_usable_row_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="has no usable row"):
        read_trace(a_file(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\xfd")
    for path in (binary, tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_trace(path)


def known_by_brute_force(rows: list[TraceRow]) -> list[int]:
    """For each row, the longest run of leading blocks of which each is in some earlier row."""
    known = []
    for i, row in enumerate(rows):
        before = {block for earlier in rows[:i] for block in earlier.blocks}
        leading = 0
        while leading < len(row.blocks) and row.blocks[leading] in before:
            leading += 1
        known.append(min(512 * leading, row.isl - 1))
    return known


def test_what_came_before_is_cached() -> None:
    rng = random.Random(3)
    rows = [
        TraceRow(512 * n - rng.randrange(500), 10, None, tuple(rng.choices(range(12), k=n)))
        for n in rng.choices(range(1, 6), k=80)
    ]
    known = known_by_brute_force(rows)
    assert any(known)
    fresh = sum(max(1, row.isl - k) for row, k in zip(rows, known, strict=True)) / len(rows)
    assert Trace("here", tuple(rows), ()).workload(cached=True).fresh == pytest.approx(fresh)


def arriving(gaps: list[float], tick: float = 0.0) -> Trace:
    now, rows = 0.0, []
    for gap in gaps:
        now += gap
        rows.append(TraceRow(100, 10, now // tick * tick if tick else now))
    return Trace("here", tuple(rows), ())


def test_burstiness_is_that_of_the_gaps() -> None:
    """Poisson: 1; even: next to 0 (0.1 is the least); crowds: above; within 5 %, of 20,000."""
    rng = random.Random(11)
    poisson = [rng.expovariate(2.0) for _ in range(20_000)]
    assert arriving(poisson).workload().arrival_cv == pytest.approx(1, rel=0.05)
    assert arriving([0.5] * 1000).workload().arrival_cv == 0.1
    crowds = [rng.expovariate(20.0 if rng.random() < 0.9 else 0.2) for _ in range(20_000)]
    assert arriving(crowds).workload().arrival_cv > 2.5


def test_times_rounded_to_a_tick_are_spread_over_it() -> None:
    rng = random.Random(12)
    poisson = [rng.expovariate(5.0) for _ in range(20_000)]
    assert arriving(poisson, tick=3.0).workload().arrival_cv == pytest.approx(1, abs=0.1)


def test_without_times_arrivals_are_poisson() -> None:
    rows = (TraceRow(100, 10, None),) * 5
    assert Trace("here", rows, ()).workload().arrival_cv == 1
    assert Trace("here", rows, ()).rate == 0
    together = tuple(TraceRow(100, 10, 4.0) for _ in range(5))
    assert Trace("here", together, ()).workload().arrival_cv == 1


def test_the_mooncake_trace() -> None:
    path = reference("traces/mooncake_conversation.jsonl")
    trace = read_trace(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(trace.rows) == len(rows) == 12_031
    assert not trace.skipped
    plain, cached = trace.workload(), trace.workload(cached=True)
    assert plain.isl == pytest.approx(sum(r["input_length"] for r in rows) / len(rows))
    assert plain.osl == pytest.approx(sum(r["output_length"] for r in rows) / len(rows))
    assert plain.arrival_cv == pytest.approx(1, abs=0.3)
    assert cached.fresh < 0.8 * plain.fresh


def test_the_azure_trace() -> None:
    trace = read_trace(reference("traces/azure_2023_code.csv"))
    assert len(trace.rows) == 8_819
    assert not trace.skipped
    workload = trace.workload()
    assert workload.isl == pytest.approx(2048, rel=0.01)
    assert workload.osl == pytest.approx(28, rel=0.03)
    assert workload.arrival_cv > 1.5
