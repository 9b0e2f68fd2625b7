"""Two sweeps side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.split.compare import Change, compare, differences
from bench.split.points import Point
from bench.split.report import as_tree
from bench.split.splits import split_of
from bench.split.sweep import Found
from bench.split.written import read_sweep
from tests.commands import eastwest

Write = Callable[..., Path]


def a_point(split: str, rate: float, seed: int = 0, ttft_s: float = 0.2) -> Point:
    times = (ttft_s, 0.01)
    return Point(
        split, rate, seed, 40, 0, 0.95, 0.05, 0.0, (times[0],) * 12, (times[1],) * 12,
        (0.0, 0.1, 0.0, 0.1, 0.0), 0.0, 0.0, 100.0,
    )  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(file: str, goodput: dict[str, tuple[float, ...]], **measured: Any) -> Path:
        found = [
            Found(split_of(name), rates, tuple(a_point(name, r, i) for i, r in enumerate(rates)))
            for name, rates in goodput.items()
        ]
        path = tmp_path / file
        tree = as_tree(found, {"within": 1.1, "isl": 512.0, **measured}, 2, {})
        path.write_text(json.dumps(tree))
        return path

    return write


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ((10.0,), (11.0,), Change.BETTER),
        ((10.0,), (10.9,), Change.NOISE),
        ((10.0,), (9.2,), Change.NOISE),
        ((10.0,), (9.0,), Change.WORSE),
        ((10.0, 12.0), (12.5, 13.0), Change.NOISE),
        ((10.0, 12.0), (13.3, 14.0), Change.BETTER),
        ((10.0, 12.0), (8.0, 8.5), Change.WORSE),
        ((0.0,), (0.0,), Change.NOISE),
        ((0.0,), (1.0,), Change.BETTER),
        ((1.0,), (0.0,), Change.WORSE),
    ],
)
def test_only_what_is_beyond_noise_has_changed(
    write: Write, before: tuple[float, ...], after: tuple[float, ...], change: Change
) -> None:
    one, other = write("a.json", {"2A": before}), write("b.json", {"2A": after})
    (compared,) = compare(read_sweep(one), read_sweep(other))
    assert compared.change is change


def test_splits_of_one_sweep_only_are_named_so(write: Write) -> None:
    one, other = write("a.json", {"2A": (1.0,), "1P1D": (2.0,)}), write("b.json", {"2A+": (1.0,)})
    compared = compare(read_sweep(one), read_sweep(other))
    assert [(c.split, c.change) for c in compared] == [
        ("2A", Change.ONLY_BEFORE), ("1P1D", Change.ONLY_BEFORE), ("2A+", Change.ONLY_AFTER)
    ]  # fmt: skip


def test_options_that_differ_are_told() -> None:
    before = {"isl": 512, "slo": {"ttft_s": 1.0, "tpot_s": 0.1}, "model": "a"}
    after = {"isl": 512, "slo": {"ttft_s": 2.0, "tpot_s": 0.1}, "live": {}}
    assert differences(before, after) == [
        "slo.ttft_s: 1.0 before, 2.0 after",
        "model: a before, None after",
        "live: None before, {} after",
    ]


def test_the_command(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (
        str(write("a.json", {"2A": (4.0,), "1P1D": (2.0,)})),
        str(write("b.json", {"2A": (4.0,), "1P1D": (1.0,)}, isl=600.0)),
    )
    code, out, _ = eastwest(monkeypatch, capsys, "bench", "compare", *files)
    assert code == 0
    assert "goodput of 2 splits: 1 worse, 1 no more than noise" in out
    assert "measured differently: isl: 512.0 before, 600.0 after" in out
    assert "4/s: 200.0 to 200.0 ms, 10.0 to 10.0 ms" in out
    guard = ("bench", "compare", "--fail-if-worse")
    assert eastwest(monkeypatch, capsys, *guard, *files)[0] == 1
    assert eastwest(monkeypatch, capsys, *guard, files[0], files[0])[0] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.update(version=2), "version: Input should be 1"),
        (lambda tree: tree.update(format="x"), "format"),
        (lambda tree: tree.pop("splits"), "splits: Field required"),
        (lambda tree: tree["splits"][0].update(goodput_by_seed=[]), "goodput_by_seed"),
        (lambda tree: tree["splits"][0]["points"][0].pop("rate"), "rate"),
    ],
)
def test_what_is_no_sweep_is_one_line(
    write: Write, change: Callable[[dict[str, Any]], object], said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = write("a.json", {"2A": (4.0,)})
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    code, _, err = eastwest(monkeypatch, capsys, "bench", "compare", str(path), str(path))
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert said in err
    code, _, err = eastwest(monkeypatch, capsys, "bench", "compare", "/none.json", str(path))
    assert (code, "cannot be read" in err) == (1, True)
