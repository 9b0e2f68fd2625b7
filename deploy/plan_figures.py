"""The interactive figures of a plan, as plotly takes them: ``{"data": …, "layout": …}`` trees.

Colours of text, grid and page are not given here: the page sets them for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

from deploy.page import Figure, axes
from deploy.plan_looks import (
    CHOSEN,
    GREY,
    KINDS,
    MODES,
    PARTS,
    PartLook,
    number,
    outcome,
    percentile,
    short,
    step_title,
    wrapped,
)
from planner.advice import describe
from planner.cost import Part
from planner.planning import Plan
from planner.quantity import seconds_text
from planner.split import Split
from planner.steps import PoolStep, Roof, roofs, typical_steps

_HOVER_WIDTH = 44
_LABEL_WIDTH = 16
# A part's share of a step from which on there is room for its name.
_NAMED_SHARE = 0.07


def figures(plan: Plan) -> dict[str, Figure]:
    """By the name of their place on the page."""
    steps = typical_steps(plan.question, plan.best)
    return {
        "frontier": frontier(plan),
        "roofline": roofline(roofs(plan.question), steps),
        "steps": step_parts(steps),
        "sensitivity": sensitivity(plan),
    }


def frontier(plan: Plan) -> Figure:
    """What each way of serving reaches for a GPU, by how fast it is for a user."""
    traces = [
        _splits(plan, splits, str(mode)) | {
            "mode": "lines+markers",
            "line": {"color": MODES[mode].colour, "dash": MODES[mode].dash[0], "width": 2.5},
            "marker": {
                "color": MODES[mode].colour, "symbol": MODES[mode].marker[0], "size": 9,
            },
        }
        for mode, splits in plan.frontiers.items()
        if splits
    ]  # fmt: skip
    chosen = _splits(plan, [plan.best], "chosen split") | {
        "mode": "markers",
        "marker": {
            "color": CHOSEN, "symbol": "star", "size": 20, "line": {"color": GREY, "width": 1},
        },
    }  # fmt: skip
    target = plan.question.targets.tpot_s
    layout = axes(
        f"tokens/s/user (1 / TPOT at {percentile(plan.question)})", "tokens/s/GPU (all pools)"
    )
    layout["xaxis"]["rangemode"] = layout["yaxis"]["rangemode"] = "tozero"
    layout["shapes"] = [
        {
            "type": "line", "x0": 1 / target, "x1": 1 / target, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": GREY, "dash": "dashdot", "width": 2},
        }
    ]  # fmt: skip
    label = f"target TPOT {seconds_text(target)}"
    layout["annotations"] = [_note(1 / target, 1, f" {label}", "left", "top", yref="paper")]
    return {"data": [*traces, chosen], "layout": layout}


def _splits(plan: Plan, splits: Iterable[Split], name: str) -> Figure:
    splits = list(splits)
    return {
        "type": "scatter",
        "name": name,
        "x": [s.tokens_per_s_per_user for s in splits],
        "y": [s.tokens_per_s_per_device for s in splits],
        "text": [_split_words(plan, s) for s in splits],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _split_words(plan: Plan, split: Split) -> str:
    at = percentile(plan.question)
    words = [
        f"<b>{short(split)}</b>",
        *map(escape, wrapped(describe(split), _HOVER_WIDTH)),
        f"{number(split.tokens_per_s_per_device)} tokens/s/GPU, "
        f"{number(split.tokens_per_s_per_user)} tokens/s/user",
        f"{number(split.rate)} requests/s, bound by {split.bound}",
        f"TTFT {seconds_text(split.ttft_s)}, TPOT {seconds_text(split.tpot_s)} at {at}",
    ]
    return "<br>".join(words)


def roofline(tops: tuple[Roof, ...], steps: tuple[PoolStep, ...]) -> Figure:
    """What the device allows by arithmetic intensity, and where the steps lie."""
    intensities = [step.work.intensity for step in steps]
    corners = [*(roof.ridge for roof in tops), *intensities]
    low, high = min(corners) / 10, max(corners) * 4
    traces = [trace for roof in tops for trace in _roof_traces(roof, low, high)]
    allowing = max((r for r in tops if r.used), key=lambda r: r.flops_per_s, default=tops[0])
    traces += [_step_point(step, allowing) for step in steps]
    layout = axes("arithmetic intensity (FLOP/byte)", "TFLOP/s of one GPU")
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    layout["xaxis"]["range"] = [math.log10(low), math.log10(high)]
    layout["annotations"] = [
        _note(
            math.log10(high), math.log10(roof.flops_per_s / 1e12), ", ".join(roof.dtypes),
            "right", "bottom",
        )
        for roof in tops
    ]  # fmt: skip
    return {"data": traces, "layout": layout}


def _roof_traces(roof: Roof, low: float, high: float) -> list[Figure]:
    """The data sheet's roof; of formats in use what is reached of it, too."""
    names = ", ".join(roof.dtypes)
    line: dict[str, Any] = {"color": GREY, "width": 3 if roof.used else 1}
    traces = [_roof_line(roof, low, high, f"{names} (data sheet)", line)]
    if roof.used and roof.reached is not None:
        dashed = line | {"width": 1.5, "dash": "dash"}
        traces.append(_roof_line(roof.reached, low, high, f"{names} as reached", dashed))
    return traces


def _roof_line(roof: Roof, low: float, high: float, name: str, line: dict[str, Any]) -> Figure:
    xs = [low, roof.ridge, high]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "showlegend": False,
        "x": xs,
        "y": [roof.at(x) / 1e12 for x in xs],
        "line": line,
        "hovertemplate": f"{name}<br>%{{x:.3s}} FLOP/byte<br>%{{y:.4g}} TFLOP/s<extra></extra>",
    }


def _step_point(step: PoolStep, roof: Roof) -> Figure:
    """A step, and a line up to what the roof allows there."""
    x, y = step.work.intensity, step.flops_per_s
    allowed = roof.at(x)
    look = KINDS[step.kind]
    words = [
        f"<b>{step_title(step)}</b>",
        f"{step.pool.layout}",
        f"{number(step.work.flops / 1e12)} TFLOP and {number(step.work.bytes / 1e9)} GB a GPU",
        f"{number(x)} FLOP/byte, {number(y / 1e12)} TFLOP/s",
        f"{y / allowed:.0%} of the {', '.join(roof.dtypes)} roof",
        f"{seconds_text(step.cost.seconds)} a step",
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": step_title(step),
        "x": [x, x],
        "y": [y / 1e12, allowed / 1e12],
        "line": {"color": look.colour, "width": 1.5, "dash": "dot"},
        "marker": {
            "color": look.colour,
            "symbol": [look.marker[0], "line-ew-open"],
            "size": [14, 10],
            "opacity": 1,
            "line": {"width": [0, 2], "color": look.colour},
        },
        "text": ["<br>".join(words)] * 2,
        "hovertemplate": "%{text}<extra></extra>",
    }


def step_parts(steps: tuple[PoolStep, ...]) -> Figure:
    """Where the time of each step goes, as shares of it."""
    names = list(dict.fromkeys(part.name for step in steps for part in step.cost.parts))
    order = [*(n for n in PARTS if n in names), *(n for n in names if n not in PARTS)]
    titles = [
        _label(f"{step_title(step)}, {seconds_text(step.cost.seconds)}", _LABEL_WIDTH)
        for step in steps
    ]
    layout = axes("share of the step's time (%)", "")
    layout |= {
        "barmode": "stack",
        "bargap": 0.35,
        "uniformtext": {"minsize": 10, "mode": "hide"},
    }
    layout["xaxis"] |= {"range": [0, 100], "ticksuffix": "%"}
    layout["yaxis"] |= {"autorange": "reversed", "ticklabelstandoff": 8}
    layout["legend"]["traceorder"] = "normal"
    return {"data": [_part_bars(name, steps, titles) for name in order], "layout": layout}


def _part_bars(name: str, steps: tuple[PoolStep, ...], titles: list[str]) -> Figure:
    look = PARTS.get(name, PartLook(name, GREY))
    shares, texts, hovers = [], [], []
    for step in steps:
        parts = [part for part in step.cost.parts if part.name == name]
        share = sum(part.seconds for part in parts) / step.cost.seconds
        shares.append(share * 100)
        texts.append(f"{look.name} {share:.0%}" if share >= _NAMED_SHARE else "")
        hovers.append("<br>".join(_part_words(part, look) for part in parts))
    return {
        "type": "bar",
        "orientation": "h",
        "name": look.name,
        "y": titles,
        "x": shares,
        "text": texts,
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"color": look.ink},
        "customdata": hovers,
        "marker": {
            "color": look.colour,
            "pattern": {
                "shape": look.hatch, "bgcolor": look.colour, "fgcolor": "#000000", "size": 7,
                "solidity": 0.15,
            },
        },
        "hovertemplate": "%{customdata}<br>%{x:.1f}% of the step<extra></extra>",
    }  # fmt: skip


def _part_words(part: Part, look: PartLook) -> str:
    sides = {
        "compute": part.compute_s,
        "memory": part.memory_s,
        "network": part.network_s,
        "fixed": part.fixed_s,
    }
    by_side = ", ".join(f"{side} {seconds_text(s)}" for side, s in sides.items() if s)
    return f"<b>{look.name}</b>: {seconds_text(part.seconds)}<br>bound by {part.bound} ({by_side})"


def sensitivity(plan: Plan) -> Figure:
    """What changes of the question do to the chosen split, and what planning again would give."""
    labels = [_label("as asked", _LABEL_WIDTH)]
    labels += [_label(change.what, _LABEL_WIDTH) for change in plan.changes]
    kept = [plan.best.rate, *(change.kept for change in plan.changes)]
    again = [plan.best.rate, *(0.0 if c.best is None else c.best.rate for c in plan.changes)]
    texts = [short(plan.best), *map(outcome, plan.changes)]
    words = [_split_words(plan, plan.best)]
    words += [outcome(c) if c.best is None else _split_words(plan, c.best) for c in plan.changes]
    layout = axes("requests/s within the targets", "")
    layout |= {"barmode": "group", "bargap": 0.3}
    layout["yaxis"] |= {"autorange": "reversed", "ticklabelstandoff": 8}
    layout["shapes"] = [
        {
            "type": "line", "x0": plan.best.rate, "x1": plan.best.rate, "y0": 0, "y1": 1,
            "yref": "paper", "line": {"color": GREY, "dash": "dashdot", "width": 2},
        }
    ]  # fmt: skip
    return {
        "data": [
            _rates("chosen split, kept", "#0072b2", labels, kept, [number(r) for r in kept])
            | {"hovertemplate": "chosen split, kept<br>%{x:.4g} requests/s<extra></extra>"},
            _rates("planned again", "#e69f00", labels, again, texts, "#000000")
            | {"customdata": words, "hovertemplate": "%{customdata}<extra></extra>"},
        ],
        "layout": layout,
    }


def _rates(
    name: str,
    colour: str,
    labels: list[str],
    rates: list[float],
    texts: list[str],
    ink: str = "#ffffff",
) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": labels,
        "x": rates,
        "text": texts,
        "textposition": "auto",
        "insidetextanchor": "start",
        "textangle": 0,
        "insidetextfont": {"color": ink},
        "cliponaxis": False,
        "marker": {"color": colour},
    }


def _note(x: float, y: float, text: str, xanchor: str, yanchor: str, yref: str = "y") -> Figure:
    return {
        "x": x, "y": y, "yref": yref, "text": text, "showarrow": False,
        "xanchor": xanchor, "yanchor": yanchor, "font": {"size": 12},
    }  # fmt: skip


def _label(text: str, width: int) -> str:
    return "<br>".join(map(escape, wrapped(text, width)))
