"""Reports of a sweep of splits: a page that needs nothing beside itself, and a picture.

What draws is imported where it is used: the command line works without the `plan` extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.split.points import MEDIAN
from bench.split.written import Sweep
from deploy.page import render, required
from deploy.plan_looks import number, share
from deploy.split_figures import figures
from planner.quantity import seconds_text


def html(sweep: Sweep) -> str:
    """The page. Raises `ConfigError` where plotly is not installed."""
    filters = {"number": number, "seconds": seconds_text, "share": share}
    return render(
        "split_report.html.j2", "the HTML report of a sweep", figures(sweep), filters,
        sweep=sweep, splits=sorted(sweep.splits, key=lambda split: -split.goodput),
        options=list(_flat(sweep.measured)), median=MEDIAN,
    )  # fmt: skip


def png(sweep: Sweep) -> bytes:
    """The picture. Raises `ConfigError` where matplotlib is not installed."""
    required("matplotlib", "the picture of a sweep")
    from deploy.split_picture import picture

    return picture(sweep)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Options by their names, those of sections behind those of the section."""
    told: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            told += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            told.append((prefix + name, str(value)))
    return told
