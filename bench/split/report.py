"""A sweep as a table and as JSON (version 1; `docs/split.md` says what the fields are)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.split.points import MEDIAN, PARTS, PERCENTILES
from bench.split.sweep import Found
from bench.split.verdict import bottleneck, verdict
from bench.split.written import VERSION


def table(
    found: Sequence[Found], title: str, devices: int | None, planned: Mapping[str, float]
) -> RenderableType:
    """The verdict, then a row for each split at its goodput, best first. devices: of all workers
    together, where they are known. planned: requests/s by the planner, of splits by name."""
    rows = Table(box=None, padding=(0, 1))
    rows.add_column("split", no_wrap=True)
    several = len(found[0].goodput) > 1
    cached = any(f.at is not None and f.at.cached_share >= 0.005 for f in found)
    columns = ["requests/s", *(["least to most"] if several else [])]
    columns += ["planned"] if planned else []
    columns.append("tokens/s/device" if devices else "tokens/s")
    columns += ["TTFT p50, p99", "TPOT p50, p99", *(["cached"] if cached else []), "busy"]
    for column in columns:
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("short of", no_wrap=True)
    for f in sorted(found, key=lambda f: -f.mean):
        cells = [f"{f.mean:.3g}"]
        cells += [f"{min(f.goodput):.3g} to {max(f.goodput):.3g}"] if several else []
        if planned:
            rate = planned.get(f.split.name)
            cells.append("" if rate is None else f"{rate:.3g}")
        if (at := f.at) is None:
            cells += ["-"] * (len(columns) - len(cells))
        else:
            cells.append(f"{at.tokens_per_s / (devices or 1):,.0f}")
            cells += [_two(at.ttft_s), _two(at.tpot_s)]
            cells += [f"{at.cached_share:.0%}"] if cached else []
            cells.append(_busy(at.busy))
        rows.add_row(f.split.name, *cells, bottleneck(f.beyond, f.split))
    return Group(Text(verdict(found).headline, style="bold"), Text(title, style="dim"), rows)


def breakdown(found: Sequence[Found]) -> RenderableType:
    """Of each split at its goodput: the mean parts of TTFT, which sum to it, and the transfer that
    nothing hid."""
    rows = Table(box=None, padding=(0, 1))
    rows.add_column("mean TTFT of", no_wrap=True)
    for column in ("whole", *PARTS, "and KV not hidden"):
        rows.add_column(column, justify="right", no_wrap=True)
    for f in sorted(found, key=lambda f: -f.mean):
        if (at := f.at) is not None:
            parts = [_s(part) for part in at.parts_s]
            rows.add_row(f.split.name, _s(sum(at.parts_s)), *parts, _s(at.exposed_s))
    return rows


def as_tree(
    found: Sequence[Found],
    measured: Mapping[str, Any],
    devices: int | None,
    planned: Mapping[str, float],
) -> dict[str, Any]:
    """Everything, as it is written: what was measured, the verdict, and every point."""
    told = verdict(found)
    return {
        "format": "eastwest split",
        "version": VERSION,
        "measured": dict(measured),
        "devices": devices,
        "percentiles": PERCENTILES,
        "ttft_parts": PARTS,
        "verdict": {
            "headline": told.headline,
            "best": None if told.best is None else told.best.split.name,
            "as_good": told.as_good,
            "over_aggregated": told.over_aggregated,
        },
        "splits": [
            {
                "split": f.split.name,
                "goodput": f.mean,
                "goodput_by_seed": f.goodput,
                "planned": planned.get(f.split.name),
                "short_of": bottleneck(f.beyond, f.split),
                "points": [{**asdict(p), "attained_interval": p.interval} for p in f.points],
            }
            for f in found
        ],
    }


def _busy(busy: Mapping[str, float]) -> str:
    return ", ".join(f"{role[0].upper()} {share:.0%}" for role, share in busy.items()) or "-"


def _two(percentiles: Sequence[float]) -> str:
    """The median and the last, in one unit."""
    low, high = percentiles[MEDIAN], percentiles[-1]
    if high < 1.0:
        return f"{low * 1e3:,.1f}, {high * 1e3:,.1f} ms"
    return f"{low:,.2f}, {high:,.2f} s"


def _s(value: float) -> str:
    return f"{value * 1e3:,.1f} ms" if value < 0.1 else f"{value:,.2f} s"
