"""Reports of a plan: a page that needs nothing beside itself, and a picture.

What draws is imported where it is used: the command line works without the `plan` extra.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy import plan_looks as looks
from deploy.page import render, required
from deploy.plan_figures import figures
from deploy.writing import writing
from planner.advice import describe
from planner.planning import LEVEL, Plan
from planner.quantity import seconds_text


def write_html(plan: Plan, path: Path) -> None:
    """Write the interactive report: one file of about 5 MB, which loads nothing from anywhere.

    Raises `ConfigError` where plotly is not installed, or `path` cannot be written.
    """
    page = html(plan)
    with writing(path):
        path.write_text(page, encoding="utf-8")


def write_png(plan: Plan, path: Path) -> None:
    """Write frontier, roofline and sensitivity as a picture of 1600 x 900 pixels.

    Raises `ConfigError` where matplotlib is not installed, or `path` cannot be written.
    """
    required("matplotlib", "the picture of a plan")
    from deploy.plan_picture import picture

    png = picture(plan)
    with writing(path):
        path.write_bytes(png)


def html(plan: Plan) -> str:
    """The report's page. Raises `ConfigError` where plotly is not installed."""
    drawn = figures(plan)
    filters: dict[str, Callable[..., Any]] = {
        "number": looks.number,
        "seconds": seconds_text,
        "share": looks.share,
        "describe": describe,
        "hardware": looks.hardware,
        "formats": looks.formats,
        "lengths": looks.lengths,
        "targets": looks.targets,
    }
    return render(
        "plan_report.html.j2", "the HTML report of a plan", drawn, filters,
        plan=plan, q=plan.question, best=plan.best, needs=plan.needs,
        at=looks.percentile(plan.question), level=looks.share(LEVEL),
        step_count=len(drawn["steps"]["data"][0]["y"]),
    )  # fmt: skip
