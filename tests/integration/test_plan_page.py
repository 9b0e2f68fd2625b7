"""The report of a plan in a real browser: it draws, complains of nothing and overflows nowhere."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.plan_figures import figures
from deploy.plan_report import write_html
from planner.planning import Plan
from tests.plans import dense_plan, lone_plan

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is absent: apt-get install chromium"
)
# A page that shows another in a frame of some width, and says how wide its content is.
FRAME = """<body>
<iframe id="frame" src="plan.html" style="width: {width}px; height: 4000px"></iframe>
<pre id="said"></pre><script>
const wait = () => {{
  const page = document.getElementById("frame").contentDocument;
  if (!page || !page.body || !page.body.dataset.drawn) return setTimeout(wait, 50);
  const root = page.scrollingElement;
  const beyond = [...page.querySelectorAll(".plot svg, .tile, .need, .advice, .wide")]
    .filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1);
  document.getElementById("said").textContent = JSON.stringify(
    {{content: root.scrollWidth, seen: root.clientWidth, beyond: beyond.length}});
}};
wait();
</script></body>"""


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """The document once scripts have run, and what the browser logged."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr",
        "--virtual-time-budget=20000", *flags, "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr


@pytest.mark.parametrize("make", [dense_plan, lone_plan], ids=["dense", "lone"])
@pytest.mark.parametrize("scheme", [(), ("--force-dark-mode",)], ids=["light", "dark"])
def test_every_trace_is_drawn_and_the_console_is_silent(
    make: Callable[[], Plan], scheme: tuple[str, ...], tmp_path: Path
) -> None:
    plan = make()
    write_html(plan, tmp_path / "plan.html")
    dom, log = browse(tmp_path / "plan.html", tmp_path / "profile", *scheme)
    assert "CONSOLE" not in log
    drawn = figures(plan)
    assert f'data-drawn="{len(drawn)}"' in dom
    traces = [trace for figure in drawn.values() for trace in figure["data"]]
    lines = [trace for trace in traces if trace["type"] == "scatter"]
    bars = [trace for trace in traces if trace["type"] == "bar"]
    assert len(re.findall(r'class="trace scatter ', dom)) == len(lines)
    assert len(re.findall(r'class="trace bars"', dom)) == len(bars)
    page, other = ("#14171c", "#ffffff") if scheme else ("#ffffff", "#14171c")
    colours = re.findall(r'class="main-svg"[^>]*background: ([^;]+);', dom)
    assert rgb(page) in colours
    assert rgb(other) not in colours


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(width: int, tmp_path: Path) -> None:
    write_html(dense_plan(), tmp_path / "plan.html")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    dom, _ = browse(tmp_path / "frame.html", tmp_path / "profile", "--allow-file-access-from-files")
    said = re.search(r'<pre id="said">(.*)</pre>', dom)
    assert said is not None
    sizes = json.loads(html.unescape(said[1]))
    assert sizes["content"] <= sizes["seen"]
    assert sizes["beyond"] == 0


def rgb(colour: str) -> str:
    """As browsers write a colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"
