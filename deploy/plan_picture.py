"""The picture of a plan: frontier, roofline and sensitivity, drawn without a screen."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deploy import plan_looks as looks
from deploy.plan_looks import CHOSEN, GREY, KINDS, MODES
from planner.planning import Plan
from planner.quantity import seconds_text
from planner.steps import roofs, typical_steps

WIDTH_PIXELS, HEIGHT_PIXELS = 1600, 900
_DPI = 100
_HEADER_WIDTH = 165
_LABEL_WIDTH = 22
# Behind text that lines may cross.
_PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def picture(plan: Plan) -> bytes:
    """A PNG of 1600 x 900 pixels."""
    figure = Figure(figsize=(WIDTH_PIXELS / _DPI, HEIGHT_PIXELS / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2, left=0.055, right=0.98, top=0.79, bottom=0.075, wspace=0.3, hspace=0.38
    )
    _header(figure, plan)
    _frontier(figure.add_subplot(grid[:, 0]), plan)
    _roofline(figure.add_subplot(grid[0, 1]), plan)
    _sensitivity(figure.add_subplot(grid[1, 1]), plan)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _header(figure: Figure, plan: Plan) -> None:
    q = plan.question
    title = f"{q.model.name} on {looks.hardware(q)}"
    asked = f"{looks.formats(q)}; {looks.lengths(q)}; {looks.targets(q)}; stack {q.stack.name}"
    advice = "\n".join(looks.wrapped(plan.advice, _HEADER_WIDTH))
    for y, text, size, weight in (
        (0.975, title, 18, "bold"),
        (0.935, asked, 11.5, "normal"),
        (0.90, advice, 12.5, "normal"),
    ):
        figure.text(0.02, y, text, size=size, weight=weight, va="top", parse_math=False)


def _frontier(axes: Axes, plan: Plan) -> None:
    for mode, splits in plan.frontiers.items():
        if splits:
            look = MODES[mode]
            axes.plot(
                [s.tokens_per_s_per_user for s in splits],
                [s.tokens_per_s_per_device for s in splits],
                color=look.colour, linestyle=look.dash[1], marker=look.marker[1], linewidth=2,
                label=str(mode),
            )  # fmt: skip
    best, target_s = plan.best, plan.question.targets.tpot_s
    axes.plot(
        best.tokens_per_s_per_user, best.tokens_per_s_per_device, color=CHOSEN, marker="*",
        markersize=22, markeredgecolor="black", linestyle="none",
        label=f"chosen: {looks.short(best)}",
    )  # fmt: skip
    axes.axvline(
        1 / target_s, color=GREY, linestyle="-.", label=f"target TPOT {seconds_text(target_s)}"
    )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    at = looks.percentile(plan.question)
    _named(axes, "Frontier", f"tokens/s/user (1 / TPOT at {at})", "tokens/s/GPU (all pools)")
    axes.legend(fontsize=11)


def _roofline(axes: Axes, plan: Plan) -> None:
    steps, tops = typical_steps(plan.question, plan.best), roofs(plan.question)
    corners = [*(roof.ridge for roof in tops), *(step.work.intensity for step in steps)]
    low, high = min(corners) / 10, max(corners) * 4
    for roof in tops:
        xs = [low, roof.ridge, high]
        ys = [roof.at(x) / 1e12 for x in xs]
        axes.plot(xs, ys, color=GREY, linewidth=2.5 if roof.used else 1)
        axes.annotate(
            ", ".join(roof.dtypes), (high, ys[-1]), (-2, 2), textcoords="offset points",
            ha="right", va="bottom", bbox=_PLAIN,
        )  # fmt: skip
        if roof.used and roof.reached is not None:
            reached = roof.reached
            xs = [low, reached.ridge, high]
            axes.plot(xs, [reached.at(x) / 1e12 for x in xs], color=GREY, linestyle="--")
    for step in steps:
        look = KINDS[step.kind]
        axes.plot(
            step.work.intensity, step.flops_per_s / 1e12, color=look.colour,
            marker=look.marker[1], markersize=11, linestyle="none", label=looks.step_title(step),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    _named(axes, "Roofline", "arithmetic intensity (FLOP/byte)", "TFLOP/s of one GPU")
    axes.legend(fontsize=10, loc="lower right")


def _sensitivity(axes: Axes, plan: Plan) -> None:
    labels = ["\n".join(looks.wrapped(change.what, _LABEL_WIDTH)) for change in plan.changes]
    again = [0.0 if c.best is None else c.best.rate for c in plan.changes]
    kept = [change.kept for change in plan.changes]
    rows = range(len(labels))
    upper = axes.barh([y - 0.2 for y in rows], kept, 0.38, color="#0072b2", label="chosen, kept")
    lower = axes.barh([y + 0.2 for y in rows], again, 0.38, color="#e69f00", label="planned again")
    for bars, texts in (
        (upper, [looks.number(rate) for rate in kept]),
        (lower, [looks.outcome(change) for change in plan.changes]),
    ):
        axes.bar_label(bars, texts, padding=4, fontsize=9, bbox=_PLAIN)
    axes.axvline(plan.best.rate, color=GREY, linestyle="-.", label="as asked")
    axes.set_xlim(0, 1.4 * max(plan.best.rate, *kept, *again))
    axes.set_yticks(list(rows), labels)
    axes.invert_yaxis()
    _named(axes, "Sensitivity", "requests/s within the targets", "")
    axes.legend(fontsize=10, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)


def _named(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", weight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#e1e5ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
