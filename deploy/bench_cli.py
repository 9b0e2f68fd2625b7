"""``eastwest bench split``: measure which split of workers serves most, live or simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.command import INTERRUPTED, ConfigPath, Settings, configured, run
from deploy.terminal import console, errors
from deploy.writing import writing
from eastwest.errors import ConfigError
from eastwest.types import Slo
from planner.quantity import duration_s

if TYPE_CHECKING:
    from bench.split.journal import Journal
    from bench.split.live import LiveWorkers
    from bench.split.load import Load
    from bench.split.points import Point
    from bench.split.splits import Split
    from bench.split.sweep import Found, Rules

# A run lasts at least so long, and so many times the target of the first token.
_SPAN_S, _SPAN_TTFT = 8.0, 8.0
# Of a device's memory. Half of it is KV, in the simulation.
_WEIGHTS_MAX = 0.5

bench_app = typer.Typer(help="Measure deployments.", no_args_is_help=True)


@bench_app.callback()
def _bench() -> None:
    """Measure deployments."""


@bench_app.command()
def split(
    simulate: Annotated[
        str | None,
        typer.Option(help="SIMULATE so many devices, such as h100-sxm:8; live without it."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Simulated: name in the catalogue, or path of a config.json.")
    ] = "llama-3.1-8b",
    tp: Annotated[int, typer.Option(help="Simulated: tensor parallelism of a worker.")] = 1,
    workers: Annotated[int, typer.Option(help="Live: how many workers to split.")] = 2,
    splits: Annotated[
        str | None,
        typer.Option(help="Such as 4A,1P3D,1P3D+ (plus: any worker may prefill); all without it."),
    ] = None,
    isl: Annotated[int, typer.Option(help="Mean prompt tokens.")] = 512,
    osl: Annotated[int, typer.Option(help="Mean answer tokens.")] = 64,
    spread: Annotated[
        float, typer.Option(help="Standard deviation of lengths over their mean (log-normal).")
    ] = 0.3,
    burstiness: Annotated[
        float, typer.Option(help="Standard deviation of the time between requests over its mean.")
    ] = 1.0,
    trace: Annotated[
        Path | None, typer.Option(help="Trace of requests, stretched to each rate, instead.")
    ] = None,
    ttft: Annotated[str, typer.Option(help="Time to first token to hold, such as 2s.")] = "2s",
    tpot: Annotated[
        str, typer.Option(help="Time per output token to hold, such as 20ms.")
    ] = "100ms",
    share: Annotated[float, typer.Option(help="Share of requests to hold both for.")] = 0.9,
    requests: Annotated[int, typer.Option(help="Of one run, at least.")] = 40,
    seeds: Annotated[int, typer.Option(help="Searches, each with other requests.")] = 1,
    within: Annotated[float, typer.Option(help="How closely a rate is found.")] = 0.1,
    journal: Annotated[
        Path | None, typer.Option(help="Keeps what is measured; a broken-off sweep goes on.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all numbers.")] = None,
    config: ConfigPath = None,
    settings: Settings = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Live: a Ray cluster instead of a local one.")
    ] = None,
) -> None:
    """Find the requests/s that each split serves within the targets, and say which is best."""
    from bench.split.journal import Journal
    from bench.split.report import breakdown, table, write_json
    from bench.split.sweep import Rules

    slo = Slo(duration_s(ttft, "--ttft", 1e-3, 3600.0), duration_s(tpot, "--tpot", 1e-4, 10.0))
    _check(share, requests, seeds, within)
    rules = Rules(share, seeds, 1.0, 1 + within)
    # Long against the target, so that a queue that only grows shows.
    span_s = max(_SPAN_S, _SPAN_TTFT * slo.ttft_s)
    measured: dict[str, Any] = {
        "slo": asdict(slo), "share": share, "requests": requests, "within": within,
        "trace": None if trace is None else str(trace),
    }  # fmt: skip
    asked = {"isl": float(isl), "osl": float(osl), "spread": spread, "burstiness": burstiness}
    if simulate is None:
        from bench.split.live import LiveWorkers

        resolved = configured(config, settings)
        sections = {"model", "prefill", "decode", "aggregated", "kv"}
        measured |= {"live": resolved.model_dump(mode="json", include=sections), **asked}
        devices = None
        title = f"live, {workers} workers"
        chosen = _splits(splits, workers)
        load = _load(asked, trace, 1 << 20)

        def sweep(told: Callable[[Point], None]) -> list[Found] | None:
            kept = Journal(journal, measured)
            live = LiveWorkers(
                resolved, load, slo, requests, span_s, share, ray_address=ray_address,
                progress=lambda words: errors.print(words, style="dim", markup=False),
            )  # fmt: skip
            return _live(live, rules, chosen, kept, told)

    else:
        from bench.split.simulated import SimulatedWorkers
        from bench.split.sweep import sweep_simulated

        name, count = _devices(simulate)
        if not 1 <= tp <= count:
            raise ConfigError(f"--tp is {tp}; allowed: 1 to {count}, the devices that there are")
        cost = _cost(model, name, tp, asked, slo, share)
        devices = count // tp * tp
        measured |= {"simulated": f"{name}:{count}", "model": model, "tp": tp, **asked}
        title = f"SIMULATED: {count // tp} workers of {tp} {name}, {model}"
        chosen = _splits(splits, count // tp)
        load = _load(asked, trace, cost.model.context_tokens)
        simulated = SimulatedWorkers(cost, load, slo, max(requests, 200), span_s)

        def sweep(told: Callable[[Point], None]) -> list[Found] | None:
            return sweep_simulated(chosen, simulated, rules, Journal(journal, measured), told)

    found = sweep(_progress(chosen))
    if found is None:
        raise SystemExit(INTERRUPTED)
    console.print(table(found, title, devices))
    console.print(breakdown(found))
    if json_path is not None:
        with writing(json_path):
            write_json(json_path, found, measured, devices)
        console.print(f"wrote {json_path}", markup=False, soft_wrap=True)


def _live(
    live: LiveWorkers,
    rules: Rules,
    splits: list[Split],
    journal: Journal,
    told: Callable[[Point], None],
) -> list[Found] | None:
    """None where it was interrupted; the journal has what was measured."""
    from bench.split.sweep import sweep

    found: list[Found] = []

    async def call() -> None:
        try:
            found.extend(await sweep(splits, live.run, rules, journal, told))
        finally:
            await asyncio.shield(live.close())

    return found if run(call()) else None


def _progress(splits: list[Split]) -> Callable[[Point], None]:
    names = [split.name for split in splits]

    def told(point: Point) -> None:
        low, high = point.interval
        broken = ", broken off" if point.stopped else ""
        errors.print(
            f"[{names.index(point.split) + 1}/{len(names)}] {point.split} at {point.rate:.3g}/s: "
            f"{point.attained:.0%} ({low:.0%} to {high:.0%}) of {point.requests}{broken}",
            style="dim", markup=False,
        )  # fmt: skip

    return told


def _splits(names: str | None, workers: int) -> list[Split]:
    from bench.split.splits import all_splits, split_of

    if names is None:
        return all_splits(workers)
    chosen = [split_of(name) for name in names.split(",")]
    for split in chosen:
        if split.workers != workers:
            raise ConfigError(
                f"{split.name} has {split.workers} workers; allowed: {workers}, or no comparison "
                f"is fair"
            )
    return list(dict.fromkeys(chosen))


def _load(asked: dict[str, float], trace: Path | None, context_tokens: int) -> Load:
    from bench.split.load import Load, check_load
    from planner.traces import read_trace

    rows = () if trace is None else read_trace(trace).rows
    return check_load(Load(**asked, trace=rows, context_tokens=context_tokens))


def _devices(text: str) -> tuple[str, int]:
    name, _, count = text.rpartition(":")
    if not name or not count.isdecimal() or not 2 <= int(count) <= 4096:
        raise ConfigError(
            f"--simulate is {text!r}; allowed: a device and how many, from 2, such as h100-sxm:8"
        )
    return name, int(count)


def _cost(model: str, device: str, tp: int, asked: dict[str, float], slo: Slo, share: float) -> Any:
    from eastwest.layout import ParallelLayout
    from planner.ask import ask
    from planner.cost import CostModel
    from planner.layouts import fits_model
    from planner.memory import weights_per_rank

    question = ask(
        model, device, ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, devices=tp, isl=asked["isl"],
        osl=asked["osl"], percentile=share,
    )  # fmt: skip
    layout, shape, memory = ParallelLayout(tp=tp), question.model, question.device.memory
    if not fits_model(shape, layout):
        raise ConfigError(f"{shape.name} cannot be split over {tp} devices; allowed: another --tp")
    weights = weights_per_rank(shape, layout, question.precision)
    if weights > _WEIGHTS_MAX * memory.bytes:
        raise ConfigError(
            f"{shape.name} takes {weights / 1e9:,.0f} GB of a device's {memory.bytes / 1e9:,.0f} "
            f"with --tp {tp}; allowed: at most {_WEIGHTS_MAX:.0%}, so that KV has room"
        )
    return CostModel(question.model, layout, question.precision, question.device, question.stack)


def _check(share: float, requests: int, seeds: int, within: float) -> None:
    for name, value, low, high in (
        ("--share", share, 0.5, 0.999),
        ("--requests", requests, 10, 100_000),
        ("--seeds", seeds, 1, 100),
        ("--within", within, 0.01, 1.0),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value:g}; allowed: {low:g} to {high:g}")
