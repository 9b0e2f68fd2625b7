"""``eastwest bench split``: measure which split of workers serves most, live or simulated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.command import INTERRUPTED, ConfigPath, Settings, configured, run
from deploy.page import required
from deploy.terminal import console, errors
from deploy.writing import writing
from eastwest.config import Config
from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from eastwest.types import Slo
from planner.quantity import duration_s

if TYPE_CHECKING:
    from bench.split.load import Load
    from bench.split.points import Point
    from bench.split.splits import Split
    from bench.split.sweep import Found, Rules
    from bench.split.written import Sweep
    from planner.cost import CostModel

# A run lasts at least so long, and so many times the target of the first token, so that a queue
# that only grows shows.
_SPAN_S, _SPAN_TTFT = 8.0, 8.0
_SIMULATED_REQUESTS = 200
# Of a device's memory. Half of it is KV, in the simulation.
_WEIGHTS_MAX = 0.5
_CONTEXT_MAX = 1 << 20

bench_app = typer.Typer(help="Measure deployments.", no_args_is_help=True)

Simulate = Annotated[
    str | None,
    typer.Option(help="SIMULATE so many devices, such as h100-sxm:8; live without it."),
]
Model = Annotated[
    str, typer.Option(help="Simulated: name in the catalogue, or path of a config.json.")
]
Tp = Annotated[int, typer.Option(help="Simulated: tensor parallelism of a worker.")]
Workers = Annotated[int, typer.Option(help="Live: how many workers to split.")]
Splits = Annotated[
    str | None,
    typer.Option(help="Such as 4A,1P3D,1P3D+ (plus: any worker may prefill); all without it."),
]
Isl = Annotated[int, typer.Option(help="Mean prompt tokens.")]
Osl = Annotated[int, typer.Option(help="Mean answer tokens.")]
Spread = Annotated[
    float, typer.Option(help="Standard deviation of lengths over their mean (log-normal).")
]
Burstiness = Annotated[
    float, typer.Option(help="Standard deviation of the time between requests over its mean.")
]
TraceFile = Annotated[
    Path | None, typer.Option(help="Trace of requests, stretched to each rate, instead.")
]
Ttft = Annotated[str, typer.Option(help="Time to first token to hold, such as 2s.")]
Tpot = Annotated[str, typer.Option(help="Time per output token to hold, such as 20ms.")]
Share = Annotated[float, typer.Option(help="Share of requests to hold both for.")]
Requests = Annotated[int, typer.Option(help="Of one run, at least.")]
Seeds = Annotated[int, typer.Option(help="Searches, each with other requests.")]
Within = Annotated[float, typer.Option(help="How closely a rate is found.")]
JournalFile = Annotated[
    Path | None, typer.Option(help="Keeps what is measured; a broken-off sweep goes on.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all numbers.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write an interactive page.")]
PngFile = Annotated[Path | None, typer.Option("--png", help="Write a picture.")]
RayAddress = Annotated[str | None, typer.Option(help="Live: a Ray cluster instead of a local one.")]


@bench_app.callback()
def _bench() -> None:
    """Measure deployments."""


@bench_app.command()
def split(
    simulate: Simulate = None,
    model: Model = "llama-3.1-8b",
    tp: Tp = 1,
    workers: Workers = 2,
    splits: Splits = None,
    isl: Isl = 512,
    osl: Osl = 64,
    spread: Spread = 0.3,
    burstiness: Burstiness = 1.0,
    trace: TraceFile = None,
    ttft: Ttft = "2s",
    tpot: Tpot = "100ms",
    share: Share = 0.9,
    requests: Requests = 40,
    seeds: Seeds = 1,
    within: Within = 0.1,
    journal: JournalFile = None,
    json_path: JsonFile = None,
    html_path: HtmlFile = None,
    png_path: PngFile = None,
    config: ConfigPath = None,
    settings: Settings = None,
    ray_address: RayAddress = None,
) -> None:
    """Find the requests/s that each split serves within the targets, and say which is best."""
    from bench.split.report import as_tree, breakdown, table
    from bench.split.sweep import Rules
    from bench.split.written import Sweep

    _check(share, requests, seeds, within)
    # Before the sweep, which takes its time.
    for path, module in ((html_path, "plotly.offline"), (png_path, "matplotlib")):
        if path is not None:
            required(module, f"{path}")
    slo = Slo(duration_s(ttft, "--ttft", 1e-3, 3600.0), duration_s(tpot, "--tpot", 1e-4, 10.0))
    lengths = {"isl": float(isl), "osl": float(osl), "spread": spread, "burstiness": burstiness}
    sweep = _Sweep(slo, Rules(share, seeds, 1.0, 1 + within), requests, lengths, trace, journal)
    if simulate is None:
        told = sweep.live(configured(config, settings), workers, splits, ray_address)
    else:
        told = sweep.simulated(*_devices(simulate), model, tp, splits)
    console.print(table(told.found, told.title, told.devices, told.planned))
    console.print(breakdown(told.found))
    tree = as_tree(told.found, told.measured, told.devices, told.planned)
    if json_path is not None:
        with writing(json_path):
            json_path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {json_path}", markup=False, soft_wrap=True)
    if html_path is not None or png_path is not None:
        written = Sweep.model_validate_json(json.dumps(tree))
        _write_reports(written, html_path, png_path)


@bench_app.command()
def report(
    sweep: Annotated[Path, typer.Argument(help="What 'bench split --json' has written.")],
    html_path: HtmlFile = None,
    png_path: PngFile = None,
) -> None:
    """Make the interactive page, or the picture, of a sweep that was written."""
    from bench.split.written import read_sweep

    if html_path is None and png_path is None:
        raise ConfigError("nothing is to be written; allowed: --html FILE, --png FILE, or both")
    _write_reports(read_sweep(sweep), html_path, png_path)


def _write_reports(sweep: Sweep, page: Path | None, picture: Path | None) -> None:
    from deploy.split_report import html, png

    for path, make in ((page, html), (picture, png)):
        if path is None:
            continue
        made = make(sweep)
        with writing(path):
            path.write_bytes(made if isinstance(made, bytes) else made.encode("utf-8"))
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


@bench_app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="What 'bench split --json' has written.")],
    after: Annotated[Path, typer.Argument(help="The same, of another sweep.")],
    fail_if_worse: Annotated[
        bool, typer.Option(help="Exit with 1 where a split is worse by more than noise.")
    ] = False,
) -> None:
    """Set two sweeps side by side: which splits serve more or less than before, beyond noise."""
    from bench.split.compare import Change, compare, comparison
    from bench.split.written import read_sweep

    one, other = read_sweep(before), read_sweep(after)
    console.print(comparison(one, other))
    if fail_if_worse and any(c.change is Change.WORSE for c in compare(one, other)):
        raise SystemExit(1)


@dataclass(frozen=True, slots=True)
class _Told:
    """What was found of what. devices: of all workers together, None where that is not known.
    planned: see `planned_rates`."""

    found: list[Found]
    title: str
    measured: Mapping[str, Any]
    devices: int | None = None
    planned: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Sweep:
    """What live and simulated sweeps are told alike."""

    slo: Slo
    rules: Rules
    requests: int
    lengths: dict[str, float]
    trace: Path | None
    journal: Path | None

    def live(
        self, config: Config, workers: int, names: str | None, ray_address: str | None
    ) -> _Told:
        """Deployments, one after the other. Exits where it is interrupted: the journal has what was
        measured."""
        from bench.split.journal import Journal
        from bench.split.live import LiveWorkers
        from bench.split.sweep import sweep

        sections = {"model", "prefill", "decode", "aggregated", "kv"}
        measured = self._measured(live=config.model_dump(mode="json", include=sections))
        splits = _splits(names, workers)
        pool = LiveWorkers(
            config, self._load(_CONTEXT_MAX), self.slo, self.requests, self._span_s,
            self.rules.share, ray_address=ray_address,
            progress=lambda words: errors.print(words, style="dim", markup=False),
        )  # fmt: skip
        journal = Journal(self.journal, measured)
        found: list[Found] = []

        async def call() -> None:
            try:
                found.extend(await sweep(splits, pool.run, self.rules, journal, _progress(splits)))
            finally:
                await asyncio.shield(pool.close())

        if not run(call()):
            raise SystemExit(INTERRUPTED)
        return _Told(found, f"live, {workers} workers", measured)

    def simulated(self, device: str, count: int, model: str, tp: int, names: str | None) -> _Told:
        """Searches side by side, in virtual time."""
        from bench.split.journal import Journal
        from bench.split.planned import planned_rates
        from bench.split.simulated import SimulatedWorkers
        from bench.split.sweep import sweep_simulated

        if not 1 <= tp <= count:
            raise ConfigError(f"--tp is {tp}; allowed: 1 to {count}, the devices that there are")
        cost = self._cost(model, device, tp)
        splits = _splits(names, count // tp)
        load = self._load(cost.model.context_tokens)
        requests = max(self.requests, _SIMULATED_REQUESTS)
        workers = SimulatedWorkers(cost, load, self.slo, requests, self._span_s)
        measured = self._measured(simulated=f"{device}:{count}", model=model, tp=tp)
        journal = Journal(self.journal, measured)
        found = sweep_simulated(splits, workers, self.rules, journal, _progress(splits))
        title = f"SIMULATED: {count // tp} workers of {tp} {device}, {model}"
        planned = planned_rates(workers, self.rules.share, splits)
        return _Told(found, title, measured, count // tp * tp, planned)

    @property
    def _span_s(self) -> float:
        return max(_SPAN_S, _SPAN_TTFT * self.slo.ttft_s)

    def _measured(self, **what: Any) -> dict[str, Any]:
        rules = {"share": self.rules.share, "within": self.rules.within}
        trace = None if self.trace is None else str(self.trace)
        return {
            "slo": asdict(self.slo), **rules, "requests": self.requests, "trace": trace,
            **self.lengths, **what,
        }  # fmt: skip

    def _load(self, context_tokens: int) -> Load:
        from bench.split.load import Load, check_load
        from planner.traces import read_trace

        rows = () if self.trace is None else read_trace(self.trace).rows
        return check_load(Load(**self.lengths, trace=rows, context_tokens=context_tokens))

    def _cost(self, model: str, device: str, tp: int) -> CostModel:
        """Of one worker. Raises `ConfigError` where the model does not fit it."""
        from planner.ask import ask
        from planner.cost import CostModel
        from planner.layouts import fits_model
        from planner.memory import weights_per_rank

        q = ask(
            model, device, ttft_s=self.slo.ttft_s, tpot_s=self.slo.tpot_s, devices=tp,
            isl=self.lengths["isl"], osl=self.lengths["osl"], percentile=self.rules.share,
        )  # fmt: skip
        layout, name, memory = ParallelLayout(tp=tp), q.model.name, q.device.memory.bytes
        if not fits_model(q.model, layout):
            raise ConfigError(f"{name} cannot be split over {tp} devices; allowed: another --tp")
        weights = weights_per_rank(q.model, layout, q.precision)
        if weights > _WEIGHTS_MAX * memory:
            raise ConfigError(
                f"{name} takes {weights / 1e9:,.0f} GB of a device's {memory / 1e9:,.0f} with --tp "
                f"{tp}; allowed: at most {_WEIGHTS_MAX:.0%}, so that KV has room"
            )
        return CostModel(q.model, layout, q.precision, q.device, q.stack)


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
    for one in chosen:
        if one.workers != workers:
            raise ConfigError(
                f"{one.name} has {one.workers} workers; allowed: {workers}, or it is not fair"
            )
    return list(dict.fromkeys(chosen))


def _devices(text: str) -> tuple[str, int]:
    name, _, count = text.rpartition(":")
    if not name or not count.isdecimal() or not 2 <= int(count) <= 4096:
        raise ConfigError(
            f"--simulate is {text!r}; allowed: a device and how many, from 2, such as h100-sxm:8"
        )
    return name, int(count)


def _check(share: float, requests: int, seeds: int, within: float) -> None:
    for name, value, low, high in (
        ("--share", share, 0.5, 0.999),
        ("--requests", requests, 10, 100_000),
        ("--seeds", seeds, 1, 100),
        ("--within", within, 0.01, 1.0),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value:g}; allowed: {low:g} to {high:g}")
