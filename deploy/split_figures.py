"""The interactive figures of a sweep of splits, as plotly takes them; see `deploy.plan_figures`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.split.points import MEDIAN, Point
from bench.split.written import Sweep, SweptSplit
from deploy.page import Figure, axes
from deploy.plan_looks import CHOSEN, GREY, number

# Okabe and Ito's, as far as they stand out on white and on the dark page alike.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
_PART_COLOURS = ("#a8adb5", "#e69f00", "#cc79a7", "#0072b2", "#56b4e9", "#009e73")


def figures(sweep: Sweep) -> dict[str, Figure]:
    """By the name of their place on the page; of splits in order of goodput, best first."""
    splits = sorted(sweep.splits, key=lambda split: -split.goodput)
    return {
        "goodput": goodput(sweep, splits),
        "frontier": frontier(sweep, splits),
        "attained": attained(sweep, splits),
        "ttft": latencies(sweep, splits, "ttft_s", "TTFT (ms)"),
        "tpot": latencies(sweep, splits, "tpot_s", "TPOT (ms)"),
        "breakdown": breakdown(sweep, splits),
    }


def goodput(sweep: Sweep, splits: Sequence[SweptSplit]) -> Figure:
    """Requests/s that each split serves within the targets, and what was planned."""
    names = [split.split for split in splits]
    best = [name == sweep.verdict.best for name in names]
    bars: Figure = {
        "type": "bar", "orientation": "h", "name": "found", "y": names,
        "x": [split.goodput for split in splits],
        "marker": {"color": [CHOSEN if chosen else COLOURS[0] for chosen in best]},
        "error_x": {
            "type": "data", "symmetric": False, "color": GREY,
            "array": [max(split.goodput_by_seed) - split.goodput for split in splits],
            "arrayminus": [split.goodput - min(split.goodput_by_seed) for split in splits],
        },
        "text": [f"short of {split.short_of}" if split.short_of else "" for split in splits],
        "textposition": "inside", "insidetextanchor": "start",
        "textfont": {"color": ["#000000" if chosen else "#ffffff" for chosen in best]},
        "hovertemplate": "%{y}: %{x:.3g} requests/s<extra></extra>",
    }  # fmt: skip
    planned = [split for split in splits if split.planned is not None]
    marks: Figure = {
        "type": "scatter", "mode": "markers", "name": "planned",
        "x": [split.planned for split in planned], "y": [split.split for split in planned],
        "marker": {"symbol": "line-ns-open", "size": 22, "color": GREY, "line": {"width": 3}},
        "hovertemplate": "%{y}: %{x:.3g} requests/s planned<extra></extra>",
    }  # fmt: skip
    layout = axes("requests/s within the targets", "")
    layout["yaxis"]["autorange"] = "reversed"
    layout["xaxis"]["rangemode"] = "tozero"
    layout["showlegend"] = bool(planned)
    return {"data": [bars, *([marks] if planned else [])], "layout": layout}


def frontier(sweep: Sweep, splits: Sequence[SweptSplit]) -> Figure:
    """What a device yields, by how fast it is for a user, at each rate that was run."""
    devices = sweep.devices or 1
    traces = []
    for split, look in _looks(splits):
        points = [point for point in first_runs(split) if point.tpot_s[MEDIAN] > 0]
        traces.append(look | {
            "x": [1 / point.tpot_s[MEDIAN] for point in points],
            "y": [point.tokens_per_s / devices for point in points],
            "text": [_words(point) for point in points],
        })  # fmt: skip
    of = "tokens/s/device" if sweep.devices else "tokens/s"
    layout = axes("tokens/s/user (1 / median TPOT)", of)
    layout["xaxis"]["rangemode"] = layout["yaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def attained(sweep: Sweep, splits: Sequence[SweptSplit]) -> Figure:
    """The share of requests that kept both targets, by rate, and what so many leave open."""
    traces = []
    for split, look in _looks(splits):
        points = first_runs(split)
        traces.append(look | {
            "x": [point.rate for point in points],
            "y": [point.attained for point in points],
            "error_y": {
                "type": "data", "symmetric": False, "thickness": 1,
                "array": [point.interval[1] - point.attained for point in points],
                "arrayminus": [point.attained - point.interval[0] for point in points],
            },
            "text": [_words(point) for point in points],
        })  # fmt: skip
    layout = axes("requests/s", "share within both targets")
    layout["xaxis"] |= {"type": "log"}
    layout["yaxis"] |= {"range": [0, 1.05], "tickformat": ".0%"}
    share = sweep.measured.get("share")
    if isinstance(share, float):
        layout["shapes"] = [_line("y", share)]
    return {"data": traces, "layout": layout}


def latencies(sweep: Sweep, splits: Sequence[SweptSplit], what: str, title: str) -> Figure:
    """The distribution of a time over requests, of each split at its goodput."""
    traces = []
    for split, look in _looks(splits):
        if (at := split.at) is not None:
            traces.append(look | {
                "x": [1e3 * value for value in getattr(at, what)],
                "y": list(sweep.percentiles),
                "hovertemplate": f"{split.split}: %{{y:.0%}} within %{{x:.4g}} ms<extra></extra>",
            })  # fmt: skip
    layout = axes(title, "share of requests within it")
    layout["xaxis"] |= {"rangemode": "tozero"}
    layout["yaxis"] |= {"range": [0, 1.02], "tickformat": ".0%"}
    targets = sweep.measured.get("slo")
    if isinstance(targets, dict) and isinstance(target := targets.get(what), float):
        layout["shapes"] = [_line("x", 1e3 * target)]
    return {"data": traces, "layout": layout}


def breakdown(sweep: Sweep, splits: Sequence[SweptSplit]) -> Figure:
    """The mean parts of TTFT, which sum to it, of each split at its goodput."""
    there = [(split.split, at) for split in splits if (at := split.at) is not None]
    traces: list[Figure] = [
        {
            "type": "bar", "orientation": "h", "name": part,
            "y": [name for name, _ in there],
            "x": [1e3 * at.parts_s[number] for _, at in there],
            "marker": {"color": _PART_COLOURS[number % len(_PART_COLOURS)]},
            "hovertemplate": f"%{{y}}: {part} %{{x:.4g}} ms<extra></extra>",
        }
        for number, part in enumerate(sweep.ttft_parts)
    ]  # fmt: skip
    layout = axes("mean TTFT (ms)", "") | {"barmode": "stack"}
    layout["yaxis"]["autorange"] = "reversed"
    layout["legend"]["traceorder"] = "normal"
    return {"data": traces, "layout": layout}


def _looks(splits: Sequence[SweptSplit]) -> list[tuple[SweptSplit, Figure]]:
    """Each with a line and marks of its own, so that none is told by its colour alone."""
    looked = []
    for place, split in enumerate(splits):
        colour = COLOURS[place % len(COLOURS)]
        look: Figure = {
            "type": "scatter", "mode": "lines+markers", "name": split.split,
            "line": {"color": colour, "dash": DASHES[place // len(COLOURS) % len(DASHES)]},
            "marker": {"color": colour, "symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8},
            "hovertemplate": "%{text}<extra></extra>",
        }  # fmt: skip
        looked.append((split, look))
    return looked


def first_runs(split: SweptSplit) -> list[Point]:
    """The runs of the first seed, by rate; those that were broken off show no more than that."""
    runs = [point for point in split.runs().values() if not point.stopped]
    seed = min((point.seed for point in runs), default=0)
    return sorted((p for p in runs if p.seed == seed), key=lambda point: point.rate)


def _words(point: Point) -> str:
    low, high = point.interval
    return "<br>".join((
        f"<b>{point.split}</b> at {number(point.rate)} requests/s",
        f"{point.attained:.1%} of {point.requests} within the targets ({low:.0%} to {high:.0%})",
        f"TTFT {number(1e3 * point.ttft_s[MEDIAN])}, p99 {number(1e3 * point.ttft_s[-1])} ms",
        f"TPOT {number(1e3 * point.tpot_s[MEDIAN])}, p99 {number(1e3 * point.tpot_s[-1])} ms",
        f"{number(point.tokens_per_s)} tokens/s",
    ))  # fmt: skip


def _line(axis: str, at: float) -> dict[str, Any]:
    """Across the whole plot."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line", f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1,
        f"{other}ref": "paper", "line": {"color": GREY, "dash": "dashdot", "width": 2},
    }  # fmt: skip
