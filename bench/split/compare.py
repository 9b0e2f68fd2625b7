"""Two sweeps side by side: what is better or worse by more than what the measurements leave open.

A search leaves open a factor of `within`: the highest rate that holds lies between the one that
held and the one that did not. Several seeds leave open what lies between the least and the most of
theirs. Goodput differs where these ranges have nothing in common.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.split.points import Point
from bench.split.written import Sweep, SweptSplit


class Change(enum.StrEnum):
    """What became of a split."""

    BETTER = "better"
    WORSE = "worse"
    NOISE = "no more than noise"
    ONLY_BEFORE = "only before"
    ONLY_AFTER = "only after"


@dataclass(frozen=True, slots=True)
class Compared:
    """One split. before, after: mean goodput, None where it was not swept. same: what was seen at
    the highest rate that both ran, with the same requests."""

    split: str
    before: float | None
    after: float | None
    change: Change
    same: tuple[Point, Point] | None = None


def compare(before: Sweep, after: Sweep) -> list[Compared]:
    """Splits in the order of the first sweep, then what only the second has."""
    old = {split.split: split for split in before.splits}
    new = {split.split: split for split in after.splits}
    compared = []
    for name in dict.fromkeys((*old, *new)):
        one, other = old.get(name), new.get(name)
        if one is None or other is None:
            change = Change.ONLY_AFTER if one is None else Change.ONLY_BEFORE
            compared.append(Compared(name, _mean(one), _mean(other), change))
            continue
        change = _change(_range(one, before.within), _range(other, after.within))
        compared.append(Compared(name, _mean(one), _mean(other), change, _same(one, other)))
    return compared


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """In what the two measured differently, in words."""
    told = []
    for name in dict.fromkeys((*before, *after)):
        one, other = before.get(name), after.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            told += [f"{name}.{words}" for words in differences(one, other)]
        elif one != other:
            told.append(f"{name}: {one} before, {other} after")
    return told


def comparison(before: Sweep, after: Sweep) -> RenderableType:
    """What changed, in a line; what was measured differently; and each split."""
    compared = compare(before, after)
    counts = {change: sum(c.change is change for c in compared) for change in Change}
    words = [f"{count} {change}" for change, count in counts.items() if count]
    rows = Table(box=None, padding=(0, 1))
    rows.add_column("split", no_wrap=True)
    for column in ("before", "after", "ratio"):
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("goodput is", no_wrap=True)
    rows.add_column("at the same rate: TTFT p99, TPOT p99", no_wrap=True)
    for c in compared:
        ratio = f"{c.after / c.before:.3f}" if c.before and c.after is not None else "-"
        rows.add_row(c.split, _rate(c.before), _rate(c.after), ratio, c.change, _told(c.same))
    unlike = [Text(f"measured differently: {told}", style="yellow")
              for told in differences(before.measured, after.measured)]  # fmt: skip
    headline = Text(f"goodput of {len(compared)} splits: {', '.join(words)}", style="bold")
    titles = dict.fromkeys((before.title, after.title))
    measured = Text("; then ".join(titles), style="dim")
    return Group(headline, measured, *unlike, rows)


def _range(split: SweptSplit, within: float) -> tuple[float, float]:
    """Where the highest rate that holds may lie."""
    return min(split.goodput_by_seed), max(split.goodput_by_seed) * within


def _change(before: tuple[float, float], after: tuple[float, float]) -> Change:
    if after[0] >= before[1] and after != before:
        return Change.BETTER
    if after[1] <= before[0] and after != before:
        return Change.WORSE
    return Change.NOISE


def _same(one: SweptSplit, other: SweptSplit) -> tuple[Point, Point] | None:
    before, after = one.runs(), other.runs()
    shared = max(before.keys() & after.keys(), default=None)
    return None if shared is None else (before[shared], after[shared])


def _mean(split: SweptSplit | None) -> float | None:
    return None if split is None else split.goodput


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _told(same: Sequence[Point] | None) -> str:
    if same is None:
        return "-"
    before, after = same
    pairs = ((before.ttft_s[-1], after.ttft_s[-1]), (before.tpot_s[-1], after.tpot_s[-1]))
    told = [f"{1e3 * one:,.1f} to {1e3 * other:,.1f} ms" for one, other in pairs]
    return f"{before.rate:.3g}/s: {', '.join(told)}"
