"""One rank's share of this machine as a device: everything measured, fitted, and put together."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from deploy.calibrate.links import LinkPlan, Links, measure_links
from deploy.calibrate.peaks import Peaks, peak_probes, peaks_of
from deploy.calibrate.repeated import Effort, interleaved
from deploy.calibrate.steps import (
    FULL,
    QUICK,
    Grid,
    Rows,
    blocks_of,
    fitting,
    measured_steps,
    step_works,
)
from eastwest.clock import Clock
from eastwest.config import Config, LayoutConfig, PoolConfig
from eastwest.errors import ConfigError, InvalidArgument
from eastwest.layout import KVSpec
from eastwest.messages import Transport
from engine.architecture import ArchitectureConfig
from engine.catalog import resolve_model
from engine.checkpoint import open_checkpoint
from engine.torch_engine import TorchEngine, compute_device, load_engine
from planner.fit import Fitted, Measured, fit_steps, step_unknowns
from planner.hardware import Device, device_from, find_device
from planner.hf_config import read_model
from planner.serving import precision_of
from planner.stacks import Stack

# Told what is being done, and which share of it is over.
Report = Callable[[str, float], None]

# Half of the steps further off than this: what was measured is no engine at work.
_MEDIAN_ERROR_MAX = 0.5
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Depth:
    """How much is measured. kv_bytes: of KV that steps may fill, at most, of a quarter of the
    machine's memory."""

    grid: Grid
    effort: Effort
    link_rounds: int
    link_bytes: int
    kv_bytes: int


QUICK_DEPTH = Depth(QUICK, Effort(30.0, 3, 9), 5, 32 << 20, 1 << 30)
FULL_DEPTH = Depth(FULL, Effort(200.0, 5, 15), 15, 128 << 20, 4 << 30)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The device, and what it was fitted to. left_out: steps of the grid that the machine, the
    model or the time had no room for."""

    device: Device
    measured: tuple[Measured, ...]
    fitted: Fitted
    left_out: int


@dataclass(frozen=True, slots=True)
class _Host:
    """This machine. memory_bytes: in all. cores: that this process may use."""

    cpu: str
    cores: int
    memory_bytes: int


def calibrate(config: Config, name: str, depth: Depth, clock: Clock, report: Report) -> Calibration:
    """Measures with the configured model, dtype, quantization, KV and threads of the decode pool
    (of the aggregated one where there is no decode), on one rank.

    Takes the machine for as long as `depth` says. Raises `ConfigError` where the model or the
    settings cannot be served or scipy is absent, `InvalidArgument` where what was measured cannot
    be, `Unavailable` where the second process dies.
    """
    if compute_device().type != "cpu":
        raise ConfigError(
            f"calibrate measures CPUs, and this process computes on {compute_device().type}; "
            f"allowed: a device of the catalogue (planner/catalogue/hardware)"
        )
    host = _host()
    report("loading the model", 0.0)
    directory = resolve_model(config.model)
    pool = config.decode if config.decode.replicas else config.aggregated
    engine, steps = _load(directory, config, pool, depth, host)
    precision = precision_of(engine.model, config.model.quantization)
    formats = ("fp32",) if precision.activations == "fp32" else ("fp32", "bf16")
    plan = LinkPlan(
        engine.model.kv, engine.kv.block_tokens, config.kv, depth.link_rounds, depth.link_bytes
    )
    links = measure_links(plan, clock, lambda done: report("collectives, KV links", done))
    probes = peak_probes(formats)
    works = [*(probe.work for probe in probes), *step_works(engine, steps)]
    times = interleaved(
        works, clock, depth.effort, lambda done: report("arithmetic, memory, engine steps", done)
    )
    peaks = peaks_of(probes, times[: len(probes)])
    measured = measured_steps(steps, times[len(probes) :])
    engine.close()
    report("fitting", 0.0)
    what = f"{config.model.source} in {engine.model.dtype}"
    model = read_model(directory)
    unknowns = step_unknowns(model, precision, peaks.flops_per_s)
    device = _device(name, host, pool.threads, peaks, links, _shares(unknowns), what)
    fitted = fit_steps(model, precision, measured, device, _stack(), unknowns=unknowns)
    if not median(map(abs, fitted.errors)) <= _MEDIAN_ERROR_MAX:
        raise InvalidArgument(
            f"half of the measured steps are more than {_MEDIAN_ERROR_MAX:.0%} off what any device "
            f"would take; the machine is too busy to be measured"
        )
    left_out = len(depth.grid.steps()) - len(measured)
    final = rounded(fitted.device.model_copy(update={"stack": fitted.stack, "measured": True}))
    return Calibration(final, tuple(measured), fitted, left_out)


def device_yaml(device: Device) -> str:
    """The file that `planner.hardware.read_device` reads back as an equal device."""
    tree = device.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=96)


def rounded(device: Device) -> Device:
    """With as many digits as measurements have."""
    return device_from(yaml.safe_dump(_rounded(device.model_dump(mode="json"))), device.name)


def _rounded(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _rounded(value) for key, value in node.items()}
    return float(f"{node:.{_DIGITS}g}") if isinstance(node, float) else node


def _load(
    directory: Path, config: Config, pool: PoolConfig, depth: Depth, host: _Host
) -> tuple[TorchEngine, list[Rows]]:
    """One rank with KV for the steps that come back: those of the grid that fit."""
    block = pool.block_tokens or config.kv.block_tokens
    facts = ArchitectureConfig.from_hf(open_checkpoint(directory).config)
    # At the widest, so that what is chosen fits whatever dtype is.
    widest: KVSpec = facts.kv_spec("float32")
    limit = min(depth.kv_bytes, host.memory_bytes // 4) // widest.bytes_per_token
    steps = fitting(depth.grid.steps(), facts.context_tokens, limit, block)
    most = max((blocks_of(rows, block) for rows in steps), default=2)
    one_rank = pool.model_copy(update={"layout": LayoutConfig(), "kv_tokens": max(2, most) * block})
    return load_engine(directory, config.model, one_rank, config.kv), steps


def _shares(unknowns: Iterable[str]) -> dict[str, dict[str, float]]:
    """The efficiencies that a fit will find, as those of a data sheet."""
    shares: dict[str, dict[str, float]] = {}
    for name in unknowns:
        if name.startswith("device.efficiency."):
            _, _, kind, dtype = name.split(".")
            shares.setdefault(kind, {})[dtype] = 1.0
    return shares


def _device(
    name: str,
    host: _Host,
    threads: int,
    peaks: Peaks,
    links: Links,
    shares: dict[str, dict[str, float]],
    what: str,
) -> Device:
    """Before the fit: rates and links, and of efficiencies that of collectives alone."""
    ranks = max(1, host.cores // threads)
    grpc = links.pushes[Transport.GRPC]
    fastest = max(
        links.collective.bytes_per_s, *(push.bytes_per_s for push in links.pushes.values())
    )
    latency = links.collective.latency_s
    tree = {
        "name": name,
        "vendor": (re.findall("[a-z]+", host.cpu.lower()) or ["any"])[0],
        "flops_per_s": dict(peaks.flops_per_s),
        "memory": {
            "bytes": host.memory_bytes / ranks,
            "bytes_per_s": peaks.read_bytes_per_s,
        },
        "scale_up": {
            "domain": ranks,
            "bytes_per_s": fastest,
            "latency_s": latency,
            "latency_per_doubling_s": latency,
        },
        "scale_out": {"bytes_per_s": grpc.bytes_per_s, "latency_s": grpc.latency_s},
        "host_bytes_per_s": peaks.copy_bytes_per_s,
        "devices_per_host": ranks,
        "efficiency": {**shares, "link": links.collective.bytes_per_s / fastest},
        "sources": [
            f"eastwest calibrate on {host.cpu}, {threads} of {host.cores} cores, with {what}",
            "scale_up: KV through shared memory or gloo, the faster; scale_out: KV over gRPC on "
            "loopback, which no network between hosts exceeds",
            "latency_per_doubling_s: taken to be that of two ranks; request_s: of the catalogue",
        ],
    }
    return device_from(yaml.safe_dump(tree), "what was measured")


def _stack() -> Stack:
    """Before the fit: shares are the device's here, and what steps do not show is as elsewhere."""
    known = find_device("cpu").stack
    return Stack(name="eastwest", layer_s=0.0, request_s=known.request_s if known else 0.0)


def _host() -> _Host:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    cpu = found[1].strip() if found else platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _Host(cpu, len(os.sched_getaffinity(0)), memory)
