"""What the reports of a plan share: names, numbers as text, colours and marks.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; those of lines and
points stand out by 3:1 on white and on the dark page alike. Nothing is told by colour alone.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from planner.planning import Change, Question
from planner.quantity import seconds_text
from planner.split import Mode, Split
from planner.steps import PoolStep

GREY = "#7d8590"
CHOSEN = "#cc79a7"


@dataclass(frozen=True, slots=True)
class Look:
    """Of a line or points: the dash and the marker, as plotly and as matplotlib name them."""

    colour: str
    dash: tuple[str, str]
    marker: tuple[str, str]


MODES = {
    Mode.AGGREGATED: Look("#009e73", ("dot", ":"), ("square", "s")),
    Mode.DISAGGREGATED: Look("#0072b2", ("solid", "-"), ("circle", "o")),
    Mode.CONDITIONAL: Look("#d55e00", ("dash", "--"), ("diamond", "D")),
}
KINDS = {
    "prefill": Look("#0072b2", ("solid", "-"), ("circle", "o")),
    "mixed": Look("#d55e00", ("solid", "-"), ("diamond", "D")),
    "decode": Look("#009e73", ("solid", "-"), ("square", "s")),
}


@dataclass(frozen=True, slots=True)
class PartLook:
    """Of a part of a step: its name in full, its colour, the text on it, and a hatch."""

    name: str
    colour: str
    ink: str = "#000000"
    hatch: str = ""


PARTS = {
    "projections": PartLook("projections", "#0072b2", "#ffffff"),
    "attention": PartLook("attention", "#cc79a7"),
    "ffn": PartLook("feed-forward", "#56b4e9"),
    "shared experts": PartLook("shared experts", "#56b4e9", hatch="/"),
    "experts": PartLook("experts", "#009e73"),
    "collectives": PartLook("collectives", "#d55e00"),
    "stages": PartLook("hand-over of stages", "#e69f00", hatch="/"),
    "head": PartLook("output head", "#f0e442"),
    "layers": PartLook("fixed, each layer", "#a8adb5"),
    "step": PartLook("fixed, each step", "#a8adb5", hatch="x"),
}


def number(value: float) -> str:
    """Three digits, and thousands apart: ``0.0312``, ``31.8``, ``12,400``."""
    if value >= 999.5:
        digits = len(f"{value:.0f}") - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def share(value: float) -> str:
    """A share as a percentage, never rounded to a certainty: ``93%``, ``99.995%``."""
    if 0.99 < value < 1:
        rest = f"{1 - value:.1g}"
        return f"{(1 - float(rest)) * 100:.6g}%"
    return f"{value * 100:.0f}%"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def percentile(question: Question) -> str:
    """``p90``."""
    return f"p{question.targets.percentile * 100:g}"


def hardware(question: Question) -> str:
    return f"{question.devices} x {question.device.name}"


def formats(question: Question) -> str:
    """Number formats: ``fp8 weights, bf16 KV``."""
    p = question.precision
    kinds = {"attention": p.attention, "feed-forward": p.ffn}
    if question.model.experts is not None:
        kinds["experts"] = p.experts
    if len(set(kinds.values())) == 1:
        return f"{p.attention} weights, {p.kv} KV"
    return ", ".join(f"{dtype} {kind}" for kind, dtype in kinds.items()) + f", {p.kv} KV"


def lengths(question: Question) -> str:
    """The workload in words."""
    w = question.workload
    words = f"ISL {w.isl:,.0f}, OSL {w.osl:,.0f} tokens in the mean"
    if w.isl - w.fresh >= 1:
        words += f", {1 - w.fresh / w.isl:.0%} of prompts cached"
    if w.arrival_cv != 1:
        words += f", arrivals with CV {w.arrival_cv:g}"
    return words


def targets(question: Question) -> str:
    t = question.targets
    within = f"TTFT {seconds_text(t.ttft_s)}, TPOT {seconds_text(t.tpot_s)}"
    return f"{within} for {t.percentile * 100:g}% of requests"


def step_title(step: PoolStep) -> str:
    """``decode pool, mixed step``."""
    return f"{step.pool.role} pool, {step.kind} step"


def short(split: Split) -> str:
    """``disaggregated 3P5D``."""
    return f"{split.mode} {split.name}"


def outcome(change: Change) -> str:
    """What planning again under a change finds, in a few words."""
    return "no split meets the targets" if change.best is None else short(change.best)
