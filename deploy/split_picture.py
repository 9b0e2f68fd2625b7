"""The picture of a sweep of splits, for papers: drawn without a screen."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.split.points import MEDIAN, Point
from bench.split.written import Sweep, SweptSplit
from deploy.plan_looks import CHOSEN, GREY, wrapped
from deploy.split_figures import COLOURS, first_runs

WIDTH_PIXELS, HEIGHT_PIXELS = 1600, 900
_DPI = 100
_HEADER_WIDTH = 150
_MARKERS = ("o", "D", "s", "^", "P", "*")
_DASHES = ("-", "--", ":", "-.")


def picture(sweep: Sweep) -> bytes:
    """A PNG of 1600 x 900 pixels: goodput by split, the frontier, and how it ends."""
    figure = Figure(figsize=(WIDTH_PIXELS / _DPI, HEIGHT_PIXELS / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2, left=0.075, right=0.98, top=0.83, bottom=0.075, wspace=0.18, hspace=0.36
    )
    headline = "\n".join(wrapped(sweep.verdict.headline, _HEADER_WIDTH))
    figure.text(0.02, 0.975, sweep.title, size=18, weight="bold", va="top", parse_math=False)
    figure.text(0.02, 0.925, headline, size=13, va="top", parse_math=False)
    splits = sorted(sweep.splits, key=lambda split: -split.goodput)
    _goodput(figure.add_subplot(grid[:, 0]), sweep, splits)
    _frontier(figure.add_subplot(grid[0, 1]), sweep, splits)
    _attained(figure.add_subplot(grid[1, 1]), sweep, splits)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _goodput(axes: Axes, sweep: Sweep, splits: Sequence[SweptSplit]) -> None:
    for place, split in enumerate(splits):
        chosen = split.split == sweep.verdict.best
        least, most = min(split.goodput_by_seed), max(split.goodput_by_seed)
        axes.barh(
            place, split.goodput, color=CHOSEN if chosen else COLOURS[0],
            xerr=[[split.goodput - least], [most - split.goodput]], ecolor=GREY,
        )  # fmt: skip
        if split.planned is not None:
            axes.plot(
                split.planned, place, marker="|", markersize=28, markeredgewidth=3, color=GREY
            )
    axes.plot([], [], marker="|", markersize=14, color=GREY, linestyle="none", label="planned")
    axes.set_yticks(range(len(splits)), [split.split for split in splits])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_title("Goodput by split", loc="left", weight="bold")
    axes.set_xlabel("requests/s within the targets")
    if any(split.planned is not None for split in splits):
        axes.legend(loc="lower right")


def _frontier(axes: Axes, sweep: Sweep, splits: Sequence[SweptSplit]) -> None:
    devices = sweep.devices or 1
    for place, split in enumerate(splits):
        runs = [run for run in first_runs(split) if run.tpot_s[MEDIAN] > 0]
        _line(
            axes, place, split.split, runs, [1 / run.tpot_s[MEDIAN] for run in runs],
            [run.tokens_per_s / devices for run in runs],
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_title("Frontier", loc="left", weight="bold")
    axes.set_xlabel("tokens/s/user (1 / median TPOT)")
    axes.set_ylabel("tokens/s/device" if sweep.devices else "tokens/s")
    axes.legend(fontsize=10)


def _attained(axes: Axes, sweep: Sweep, splits: Sequence[SweptSplit]) -> None:
    for place, split in enumerate(splits):
        runs = first_runs(split)
        rates = [run.rate for run in runs]
        _line(axes, place, split.split, runs, rates, [100 * run.attained for run in runs])
    share = sweep.measured.get("share")
    if isinstance(share, float):
        axes.axhline(100 * share, color=GREY, linestyle="-.")
    axes.set_xscale("log")
    axes.set_ylim(0, 105)
    axes.set_title("How it ends", loc="left", weight="bold")
    axes.set_xlabel("requests/s")
    axes.set_ylabel("% within both targets")


def _line(
    axes: Axes, place: int, name: str, runs: Sequence[Point], xs: list[float], ys: list[float]
) -> None:
    if runs:
        axes.plot(
            xs, ys, color=COLOURS[place % len(COLOURS)], marker=_MARKERS[place % len(_MARKERS)],
            linestyle=_DASHES[place // len(COLOURS) % len(_DASHES)], label=name,
        )  # fmt: skip
