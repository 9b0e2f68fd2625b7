"""`eastwest roofline`: the ideal rooflines as tables with small curves, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import log
from pathlib import Path

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table

from deploy.writing import writing
from planner.roofline import DecodePoint
from planner.roofline_report import RooflineReport, ScaleUpRow

_BAR = 18
_COUNTED = ("flops", "weight_bytes", "kv_bytes")
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SMALL = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def roofline_tables(report: RooflineReport) -> RenderableType:
    """All tables, one below the other."""
    sections = (_device, _sizes, _phases, _memory, _scale_up, _batches)
    parts: list[RenderableType] = [_heading(report)]
    for section in sections:
        parts += ["", section(report)]
    return Group(*parts)


def write_json(report: RooflineReport, path: Path) -> None:
    """All numbers, in SI units, named as in `planner.roofline_report`. Raises `ConfigError` where
    `path` cannot be written."""
    text = json.dumps(asdict(report), indent=2, allow_nan=False) + "\n"
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _heading(report: RooflineReport) -> str:
    p = report.precision
    replica = "1 device" if report.devices == 1 else f"{report.devices} devices"
    return (
        f"[bold]{report.model}[/] on [bold]{report.device}[/], at best: no efficiency, no latency "
        f"unless named\n"
        f"weights {report.weights} (attention {p.attention}, head {p.head}), KV {p.kv}, "
        f"between devices {p.activations}; a replica is {replica}"
    )


def _device(report: RooflineReport) -> RenderableType:
    table = _table("ridge points: memory feeds arithmetic from here on")
    for column in ("format", "FLOP/s", "FLOP/byte", "N x N x N from N", "weights from batch"):
        table.add_column(column, justify="left" if column == "format" else "right")
    for r in report.ridges:
        numbers = (r.flops_per_byte, r.matmul_crossover, r.critical_batch)
        table.add_row(r.dtype, _si(r.flops_per_s), *(f"{n:,.1f}" for n in numbers))
    return Group(
        table,
        f"memory {_si(report.memory_bytes_per_s)}B/s is {report.memory_over_network:.2f} times the "
        f"scale-up links, {_si(report.scale_up_bytes_per_s)}B/s one way",
    )


def _sizes(report: RooflineReport) -> RenderableType:
    table = _table("weights")
    for column in ("component", "parameters a layer", "layers", "bytes", "share"):
        table.add_column(column, justify="left" if column == "component" else "right")
    table.add_column("")
    for s in report.sizes:
        bar = Bar(1.0, 0.0, s.share, width=_BAR)
        row = (f"{s.params:,}", str(s.layers), f"{_si(s.weight_bytes)}B", f"{s.share:.1%}")
        table.add_row(s.name, *row, bar)
    return Group(
        table,
        f"{_si(report.total_params)} parameters, {_si(report.active_params)} for each token; "
        f"{report.kv_token_bytes:,.0f} bytes of KV for each token of a long context",
    )


def _phases(report: RooflineReport) -> RenderableType:
    context = report.isl + report.osl / 2
    phases = (
        (f"one decode step: {report.batch} sequences of {context:,.0f} tokens", report.decode, ""),
        (f"prefill of {report.isl:,} tokens", report.prefill, f" at MFU {report.mfu:g}"),
    )
    parts: list[RenderableType] = []
    for title, phase, how in phases:
        table = _table(title)
        for column in ("component", "FLOPs", "weight bytes", "KV bytes", "FLOP/byte"):
            table.add_column(column, justify="left" if column == "component" else "right")
        for c in phase.components:
            row = (_si(c.flops), _si(c.weight_bytes), _si(c.kv_bytes), f"{c.flops_per_byte:,.1f}")
            table.add_row(c.name, *row)
        total = (_si(sum(getattr(c, f) for c in phase.components)) for f in _COUNTED)
        table.add_row("together", *total, f"{phase.flops_per_byte:,.1f}", style="bold")
        waits = f"{_time(phase.seconds)}{how}, waiting most for {phase.waits_for}"
        parts += [*([""] if parts else []), table, waits]
    return Group(*parts)


def _memory(report: RooflineReport) -> RenderableType:
    tokens = report.isl + report.osl
    table = _table(f"what fits beside the weights, in sequences of {tokens:,} tokens")
    for column in ("devices", "memory", "reserved", "weights", "tokens", "sequences"):
        table.add_column(column, justify="right")
    for f in report.fits:
        held = (f"{_si(f.memory_bytes)}B", f"{f.reserve:.0%}", f"{_si(f.weight_bytes)}B")
        fits = (f"{f.tokens:,.0f}", f"{f.sequences:,.1f}") if f.tokens else ("none", "none")
        table.add_row(str(f.devices), *held, *fits)
    return table


def _scale_up(report: RooflineReport) -> RenderableType:
    parts: list[RenderableType] = []
    for matrices in sorted({row.matrices for row in report.scale_up}):
        rows = [row for row in report.scale_up if row.matrices == matrices]
        parts += [*([""] if parts else []), _scale_up_table(report, matrices, rows)]
    return Group(*parts)


def _scale_up_table(
    report: RooflineReport, matrices: int, rows: Sequence[ScaleUpRow]
) -> RenderableType:
    table = _table(
        f"useful scale-up: devices Y on which a layer of {matrices} matrices takes as long as "
        f"its network"
    )
    for column in ("batch", "compute/Y", "weights/Y", "network"):
        table.add_column(column, justify="right")
    for latency_s in report.latencies_s:
        name = f"Y, {_time(latency_s)} latency" if latency_s else "Y, bandwidth"
        table.add_column(name, justify="right")
    table.add_column("(log)")
    most = max(row.useful_devices[0] for row in rows)
    for row in rows:
        layer = row.layer
        times = (_time(s) for s in (layer.compute_s, layer.memory_s, layer.network_s))
        useful = (f"{y:,.1f}" for y in row.useful_devices)
        table.add_row(f"{layer.batch:g}", *times, *useful, _log_bar(row.useful_devices[0], most))
    return table


def _batches(report: RooflineReport) -> RenderableType:
    replica = "1 device" if report.devices == 1 else f"{report.devices} devices"
    table = _table(f"latency against throughput: decode on {replica}, by batch")
    for column in ("batch", "FLOP/byte", "step", "tokens/s/user", "tokens/s/device"):
        table.add_column(column, justify="right")
    table.add_column("")
    table.add_column("waits for")
    table.add_column("E2E", justify="right")
    table.add_column("P:D", justify="right")
    points = report.decode_by_batch
    most = max(p.tokens_per_s_per_device for p in points)
    for p, both in zip(points, report.balance, strict=True):
        table.add_row(
            f"{p.batch:,}", f"{p.flops_per_byte:,.1f}", _time(p.step_s),
            f"{p.tokens_per_s_per_user:,.1f}", f"{p.tokens_per_s_per_device:,.0f}",
            Bar(most, 0.0, p.tokens_per_s_per_device, width=_BAR), _waits_for(p), _time(both.e2e_s),
            f"{both.prefills_per_decode:.3g}", style=None if p.fits else "dim",
        )  # fmt: skip
    return Group(
        table,
        f"E2E: {report.isl:,} tokens in, {report.osl:,} out, no queue. P:D: prefill replicas that "
        f"keep one of decode busy",
    )


def _waits_for(point: DecodePoint) -> str:
    return point.waits_for if point.fits else "does not fit"


def _log_bar(value: float, most: float) -> RenderableType:
    """From 1 (or a thousandth of `most`) to `most`, on a logarithmic scale."""
    least = min(1.0, most / 1e3)
    return Bar(1.0, 0.0, log(max(value, least) / least) / log(most / least), width=_BAR)


def _table(title: str) -> Table:
    return Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left")


def _si(value: float) -> str:
    """Three digits and a decimal prefix: ``70.6 G``."""
    scale, prefix = next((p for p in _PREFIXES if abs(value) >= p[0]), _PREFIXES[-1])
    return f"{value / scale:.3g} {prefix}" if value else "0 "


def _time(seconds: float) -> str:
    scale, unit = next((u for u in _SMALL if seconds >= u[0]), _SMALL[-1])
    return f"{seconds / scale:.3g} {unit}"
