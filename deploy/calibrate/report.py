"""A calibration for terminals: what was found, and predictions beside what was measured."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from deploy.calibrate.machine import Calibration
from planner.cost import Row
from planner.fit import Spread
from planner.hardware import Device


def calibration_report(found: Calibration) -> RenderableType:
    """The device, each step, and how far off predictions are."""
    return Group(_device(found.device), "", _figures(found), "", _steps(found), "", _errors(found))


def _device(device: Device) -> str:
    rates = ", ".join(f"{rate / 1e9:.4g} GFLOP/s {n}" for n, rate in device.flops_per_s.items())
    memory, up, out = device.memory, device.scale_up, device.scale_out
    collectives = _gb(up.bytes_per_s * device.efficiency.link)
    return (
        f"{device.name}: {rates}\n"
        f"memory {memory.bytes / 2**30:.3g} GiB at {_gb(memory.bytes_per_s)}\n"
        f"collectives {collectives} after {1e6 * up.latency_s:.3g} us\n"
        f"KV on one host {_gb(up.bytes_per_s)}; over gRPC {_gb(out.bytes_per_s)} after "
        f"{1e3 * out.latency_s:.3g} ms"
    )


def _figures(found: Calibration) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("fitted")
    table.add_column("", justify="right")
    for name, value in found.fitted.values.items():
        table.add_row(name, f"{1e3 * value:.3g} ms" if name.endswith("_s") else f"{value:.3g}")
    return table


def _steps(found: Calibration) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("step")
    for column in ("measured ms", "predicted ms", "error"):
        table.add_column(column, justify="right")
    fitted = found.fitted
    rows = zip(found.measured, fitted.predicted_s, fitted.errors, strict=True)
    for step, predicted_s, error in rows:
        words = " + ".join(map(_words, step.rows))
        table.add_row(
            words, f"{1e3 * step.seconds:.1f}", f"{1e3 * predicted_s:.1f}", f"{error:+.1%}"
        )
    return table


def _errors(found: Calibration) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("errors of")
    for column in ("steps", "median", "p90"):
        table.add_column(column, justify="right")
    by_kind: dict[str, list[float]] = {"all": list(found.fitted.errors)}
    for step, error in zip(found.measured, found.fitted.errors, strict=True):
        by_kind.setdefault(step.kind, []).append(error)
    for kind, errors in by_kind.items():
        spread = Spread.of(errors)
        table.add_row(kind, str(spread.count), f"{spread.median:.1%}", f"{spread.p90:.1%}")
    if found.left_out:
        table.add_row("left out", str(found.left_out))
    return table


def _words(row: Row) -> str:
    many = f"{row.count:.0f} x " if row.count > 1 else ""
    what = f"prompt {row.new:.0f}" if row.new > 1 else "decode"
    return f"{many}{what} after {row.past:.0f}"


def _gb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.3g} GB/s"
