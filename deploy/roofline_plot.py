"""The curves of `eastwest roofline` as a picture (matplotlib) or a page (plotly).

Three panels, of the same data in both: the roofline with decode and prefill on it, the useful
scale-up by batch, and latency against throughput. Both libraries are of the extra ``plan``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.writing import writing
from eastwest.errors import ConfigError
from planner.roofline_report import RooflineReport


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one line; `labels` (of a point, or none) tell the batch."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves on two logarithmic axes."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]


def panels(report: RooflineReport) -> tuple[Panel, ...]:
    """What is drawn."""
    return (_roof(report), _scale_up(report), _latency(report))


def write_png(report: RooflineReport, path: Path) -> None:
    """Raises `ConfigError` without matplotlib, or where `path` cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _absent("--png", "matplotlib") from error
    figure = Figure(figsize=(18, 5.5), layout="constrained")
    figure.suptitle(_title(report))
    drawn = panels(report)
    for axes, panel in zip(figure.subplots(1, len(drawn)), drawn, strict=True):
        for curve in panel.curves:
            axes.plot(curve.x, curve.y, marker="o" if curve.labels else "", label=curve.name)
            for label, x, y in zip(curve.labels, curve.x, curve.y, strict=False):
                axes.annotate(label, (x, y), textcoords="offset points", xytext=(4, -10))
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y, xscale="log", yscale="log")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    with writing(path):
        figure.savefig(path, format="png", dpi=120)


def write_html(report: RooflineReport, path: Path) -> None:
    """One file that needs no network. Raises as `write_png` does."""
    try:
        from plotly.graph_objects import Figure, Scatter
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise _absent("--html", "plotly") from error
    drawn = panels(report)
    figure: Figure = make_subplots(1, len(drawn), subplot_titles=[p.title for p in drawn])
    for column, panel in enumerate(drawn, 1):
        for curve in panel.curves:
            line = Scatter(
                x=list(curve.x), y=list(curve.y), name=curve.name, text=list(curve.labels),
                mode="lines+markers+text" if curve.labels else "lines",
                textposition="bottom right",
            )  # fmt: skip
            figure.add_trace(line, row=1, col=column)
        figure.update_xaxes(type="log", title_text=panel.x, row=1, col=column)
        figure.update_yaxes(type="log", title_text=panel.y, row=1, col=column)
    figure.update_layout(title_text=_title(report))
    text = str(figure.to_html(include_plotlyjs=True))
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _absent(flag: str, library: str) -> ConfigError:
    return ConfigError(
        f"{flag} needs {library}, which is not installed; "
        f"install eastwest[plan], or use --json instead"
    )


def _title(report: RooflineReport) -> str:
    return (
        f"{report.model} on {report.device}, at best: weights {report.weights}, "
        f"KV {report.precision.kv}, devices in a replica: {report.devices}"
    )


def _roof(report: RooflineReport) -> Panel:
    """Each format's roof, and what decode and prefill reach below it."""
    least = min(1.0, report.decode_by_batch[0].flops_per_byte)
    most = 2 * max(report.prefill.flops_per_byte, *(r.flops_per_byte for r in report.ridges))
    memory = report.memory_bytes_per_s
    roofs = tuple(
        Curve(
            r.dtype,
            (least, r.flops_per_byte, most),
            (least * memory, r.flops_per_s, r.flops_per_s),
        )
        for r in report.ridges
    )
    points = report.decode_by_batch
    decode = Curve(
        "decode",
        [p.flops_per_byte for p in points],
        [p.flops_per_s_per_device for p in points],
        [f"B={p.batch}" for p in points],
    )
    done = sum(c.flops for c in report.prefill.components) / report.prefill.seconds
    prefill = Curve(
        f"prefill at MFU {report.mfu:g}",
        (report.prefill.flops_per_byte,),
        (done / report.devices,),
        (f"{report.isl:,} tokens",),
    )
    return Panel("roofline", "FLOP/byte", "FLOP/s of a device", (*roofs, decode, prefill))


def _scale_up(report: RooflineReport) -> Panel:
    curves = []
    for matrices in sorted({row.matrices for row in report.scale_up}):
        rows = [row for row in report.scale_up if row.matrices == matrices]
        for i, latency_s in enumerate(report.latencies_s):
            name = f"{matrices} matrices, latency {latency_s * 1e6:g} µs"
            batches, useful = [r.layer.batch for r in rows], [r.useful_devices[i] for r in rows]
            curves.append(Curve(name, batches, useful))
    return Panel("useful scale-up", "batch", "devices", tuple(curves))


def _latency(report: RooflineReport) -> Panel:
    curves = []
    for name, fits in (("fits in memory", True), ("does not fit", False)):
        points = [p for p in report.decode_by_batch if p.fits is fits]
        users = [p.tokens_per_s_per_user for p in points]
        devices = [p.tokens_per_s_per_device for p in points]
        curves.append(Curve(name, users, devices, [f"B={p.batch}" for p in points]))
    title = "latency against throughput of decode"
    return Panel(title, "tokens/s/user", "tokens/s/device", tuple(c for c in curves if c.x))
