"""Reports of a plan: complete, self-contained, and with one clear line where they cannot be."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects
import pytest
from matplotlib.image import imread

from deploy.plan_figures import figures
from deploy.plan_looks import number, share
from deploy.plan_report import html, write_html, write_png
from eastwest.errors import ConfigError
from planner.advice import describe
from planner.planning import Plan
from planner.split import Mode
from tests.plans import dense_plan, lone_plan

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """The text outside scripts and styles, and whatever a browser would load."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text = ""
        self.styles = ""
        self.loads: list[tuple[str, str, str | None]] = []
        self.scripts = 0
        self.policy = ""
        self._inside = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.scripts += tag == "script"
        self.loads += [(tag, name, value) for name, value in attrs if name in LOADING]
        given = dict(attrs)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles += data
        elif self._inside != "script":
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def changed_name(plan: Plan, name: str) -> Plan:
    model = replace(plan.question.model, name=name)
    return replace(plan, question=replace(plan.question, model=model))


def test_the_page_loads_nothing() -> None:
    page = Page(html(dense_plan()))
    assert page.loads == []
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    assert page.policy.startswith("default-src 'none';")
    assert "http" not in page.policy


def test_plotly_is_in_the_page_once() -> None:
    content = html(dense_plan())
    assert Page(content).scripts == 3
    assert content.count("plotly.js v") == 1


def test_the_page_has_the_question_the_advice_and_every_mode() -> None:
    plan = dense_plan()
    words = Page(html(plan)).words
    assert plan.advice in words
    assert "llama-3.1-8b on 8 x h100-sxm" in words
    assert "ISL 2,048, OSL 256 tokens" in words
    assert "TTFT 1 s, TPOT 20 ms for 90% of requests" in words
    for mode in Mode:
        assert mode in words
    for split in plan.by_mode.values():
        assert split is not None
        assert number(split.rate) in words
        for pool in split.pools:
            assert str(pool.layout) in words
    for change in plan.changes:
        assert change.what in words
        assert change.best is not None
        assert describe(change.best) in words


def test_the_price_is_shown_where_it_is_known() -> None:
    plan = dense_plan()
    assert "$" not in Page(html(plan)).words
    priced = replace(plan, question=replace(plan.question, price_per_hour=2.0))
    dollars = number(priced.dollars_per_million_tokens(priced.best))
    assert f"${dollars}for 1M answer tokens" in Page(html(priced)).words


def test_modes_and_changes_without_a_split_are_said_to_have_none() -> None:
    plan = lone_plan()
    assert plan.by_mode[Mode.DISAGGREGATED] is None
    lost = replace(plan, changes=(replace(plan.changes[0], best=None, kept=0.0),))
    words = Page(html(lost)).words
    assert "disaggregated no split meets both targets" in words
    assert "misses the targets" in words
    assert "No KV between pools" in words


def test_names_from_outside_are_text() -> None:
    content = html(changed_name(dense_plan(), "</script><img src=x onerror=alert(1)>"))
    assert Page(content).loads == []
    assert "<img" not in content.replace(content[content.index("plotly.js v") :], "")


@pytest.mark.parametrize("make", [dense_plan, lone_plan], ids=["dense", "lone"])
def test_plotly_knows_every_property_of_the_figures(make: Callable[[], Plan]) -> None:
    for figure in figures(make()).values():
        plotly.graph_objects.Figure(figure)  # raises for what it does not know


def test_every_axis_has_its_unit() -> None:
    drawn = figures(dense_plan())
    titles = {
        name: [figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
        for name, figure in drawn.items()
    }
    assert titles == {
        "frontier": ["tokens/s/user (1 / TPOT at p90)", "tokens/s/GPU (all pools)"],
        "roofline": ["arithmetic intensity (FLOP/byte)", "TFLOP/s of one GPU"],
        "steps": ["share of the step's time (%)", ""],  # of names
        "sensitivity": ["requests/s within the targets", ""],
    }


def test_parts_of_each_step_make_up_the_whole() -> None:
    bars = figures(dense_plan())["steps"]["data"]
    assert [sum(shares) for shares in zip(*(bar["x"] for bar in bars), strict=True)] == [
        pytest.approx(100)
    ] * len(bars[0]["y"])


def test_the_picture_is_1600_by_900_and_drawn_on(tmp_path: Path) -> None:
    for plan in (dense_plan(), lone_plan()):
        write_png(plan, tmp_path / "plan.png")
        pixels = imread(io.BytesIO((tmp_path / "plan.png").read_bytes()))
        assert pixels.shape[:2] == (900, 1600)
        # Ink in each of the header and the three plots, in many colours.
        for part in (
            pixels[:150], pixels[200:850, 100:720], pixels[200:450, 950:1550],
            pixels[570:830, 950:1550],
        ):  # fmt: skip
            assert (part[..., :3].min(axis=-1) < 0.6).mean() > 0.005
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50


def test_names_from_outside_are_no_formulas(tmp_path: Path) -> None:
    write_png(changed_name(dense_plan(), r"$\frac$ of {a}"), tmp_path / "plan.png")


@pytest.mark.parametrize("write", [write_html, write_png])
def test_a_path_that_cannot_be_written_is_named(
    write: Callable[[Plan, Path], None], tmp_path: Path
) -> None:
    missing = tmp_path / "missing" / "plan"
    with pytest.raises(ConfigError, match=f"{missing} cannot be written: No such file"):
        write(dense_plan(), missing)


@pytest.mark.parametrize(
    ("library", "writer"), [("plotly", "write_html"), ("matplotlib", "write_png")]
)
def test_without_the_extra_an_error_names_it(library: str, writer: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.modules[{library!r}] = None\n"
        f"from deploy.plan_report import {writer}\n"
        "from eastwest.errors import ConfigError\n"
        "from pathlib import Path\n"
        "from tests.plans import lone_plan\n"
        "try:\n"
        f"    {writer}(lone_plan(), Path(sys.argv[1]))\n"
        "except ConfigError as error:\n"
        "    sys.stdout.write(error.message)\n"
    )
    target = tmp_path / "plan"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], check=True, capture_output=True, text=True
    )
    assert f"needs {library}, which is not installed: pip install 'eastwest[plan]'" in done.stdout
    assert not target.exists()


def test_the_command_line_starts_without_what_draws() -> None:
    code = (
        "import sys, deploy.cli, deploy.plan_report\n"
        "drawing = {'plotly', 'matplotlib'} & set(sys.modules)\n"
        "assert not drawing, drawing"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.03123, "0.0312"),
        (31.76, "31.8"),
        (999.4, "999"),
        (999.6, "1,000"),
        (12_437, "12,400"),
        (0, "0"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.931, "93%"), (1.0, "100%"), (0.99994607, "99.995%"), (0.9981, "99.8%"), (0.0, "0%")],
)
def test_shares_are_not_rounded_to_certainties(value: float, text: str) -> None:
    assert share(value) == text
