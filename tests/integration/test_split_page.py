"""The report of a sweep in a real browser: it draws, complains of nothing and overflows nowhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deploy.split_figures import figures
from deploy.split_report import html
from tests.integration.test_plan_page import CHROMIUM, FRAME, browse
from tests.sweeps import a_sweep

pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is absent: apt-get install chromium"
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "plan.html"
    path.write_text(html(a_sweep()), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", [(), ("--force-dark-mode",)], ids=["light", "dark"])
def test_every_trace_is_drawn_and_the_console_is_silent(
    page: Path, scheme: tuple[str, ...], tmp_path: Path
) -> None:
    dom, log = browse(page, tmp_path / "profile", *scheme)
    assert "CONSOLE" not in log
    drawn = figures(a_sweep())
    assert f'data-drawn="{len(drawn)}"' in dom
    traces = [trace for figure in drawn.values() for trace in figure["data"]]
    lines = [trace for trace in traces if trace["type"] == "scatter"]
    bars = [trace for trace in traces if trace["type"] == "bar"]
    assert len(re.findall(r'class="trace scatter ', dom)) == len(lines)
    assert len(re.findall(r'class="trace bars"', dom)) == len(bars)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(page: Path, width: int, tmp_path: Path) -> None:
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    dom, _ = browse(tmp_path / "frame.html", tmp_path / "profile", "--allow-file-access-from-files")
    said = re.search(r'<pre id="said">(.*)</pre>', dom)
    assert said is not None
    seen = json.loads(said[1].replace("&quot;", '"'))
    assert seen["content"] <= seen["seen"]
    assert seen["beyond"] == 0
