"""The page of a sweep: every figure is drawn from what was found, and loads nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from bench.split.written import Sweep, read_sweep
from deploy.split_figures import figures
from deploy.split_report import html
from tests.commands import eastwest
from tests.sweeps import a_sweep


def test_figures_show_every_split_and_no_number_that_is_none() -> None:
    drawn = figures(a_sweep())
    json.dumps(drawn, allow_nan=False)
    assert drawn["goodput"]["data"][0]["y"] == ["1P1D+", "2A", "1P1D"]
    assert drawn["goodput"]["data"][1]["x"] == [9.0]
    # One has kept the targets at no rate.
    assert [trace["name"] for trace in drawn["ttft"]["data"]] == ["1P1D+", "2A"]
    assert [trace["name"] for trace in drawn["attained"]["data"]] == ["1P1D+", "2A", "1P1D"]
    parts = drawn["breakdown"]["data"]
    assert [sum(trace["x"][i] for trace in parts) for i in (0, 1)] == pytest.approx([200.0, 200.0])
    assert drawn["ttft"]["layout"]["shapes"][0]["x0"] == 300.0


def test_the_page_is_one_file_with_its_text_escaped() -> None:
    page = html(a_sweep(model="<script>alert(1)</script>", simulated="h100:2", tp=1))
    assert "<script>alert(1)" not in page
    assert "SIMULATED: &lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page
    assert "no rate kept the targets" in page


def test_a_sweep_without_anything_that_held_has_a_page() -> None:
    sweep = a_sweep()
    none = [split.model_copy(update={"goodput": 0.0, "goodput_by_seed": (0.0,)})
            for split in sweep.splits]  # fmt: skip
    verdict = sweep.verdict.model_copy(update={"best": None, "headline": "nothing held"})
    page = html(sweep.model_copy(update={"splits": tuple(none), "verdict": verdict}))
    assert "nothing held" in page


def test_the_command_makes_a_page_of_what_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, page = tmp_path / "sweep.json", tmp_path / "sweep.html"
    written.write_text(a_sweep().model_dump_json())
    assert isinstance(read_sweep(written), Sweep)
    code, out, _ = eastwest(
        monkeypatch, capsys, "bench", "report", str(written), "--html", str(page)
    )
    assert (code, "wrote" in out) == (0, True)
    assert page.read_text().startswith("<!doctype html>")
    drawn = tmp_path / "sweep.png"
    assert (
        eastwest(monkeypatch, capsys, "bench", "report", str(written), "--png", str(drawn))[0] == 0
    )
    assert imread(drawn).shape[:2] == (900, 1600)
    code, _, err = eastwest(monkeypatch, capsys, "bench", "report", str(written))
    assert (code, "--png FILE" in err) == (1, True)
    code, _, err = eastwest(
        monkeypatch, capsys, "bench", "report", str(written), "--html", "/none/x.html"
    )
    assert (code, "/none/x.html" in err) == (1, True)
