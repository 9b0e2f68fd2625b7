"""`eastwest plan`: which layouts and which split, for a model, hardware, workload and targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn

from deploy.plan_files import write_config, write_json
from deploy.plan_view import plan_view
from deploy.terminal import console
from eastwest.errors import ConfigError
from planner.ask import ask
from planner.planning import Plan, Question, plan
from planner.quantity import count_of, duration_s
from planner.traces import SKIPPED_SHOWN, read_trace
from planner.workload import TOKENS_MAX, Workload, steady

_TTFT = (1e-3, 3600.0)
_TPOT = (1e-4, 10.0)


Model = Annotated[
    str, typer.Option(help="Name in the catalogue, or path of a config.json or directory.")
]
Hardware = Annotated[str, typer.Option(help="Name of a device, or path of its YAML file.")]
Ttft = Annotated[str, typer.Option(help="Time to first token to hold, such as 2s.")]
Tpot = Annotated[str, typer.Option(help="Time per output token to hold, such as 20ms.")]
Gpus = Annotated[int | None, typer.Option(help="How many devices.")]
Budget = Annotated[float | None, typer.Option(help="Dollars an hour, instead of --gpus.")]
Isl = Annotated[str | None, typer.Option(help="Mean prompt tokens, such as 8192 or 8k.")]
Osl = Annotated[str | None, typer.Option(help="Mean answer tokens.")]
Spread = Annotated[
    float, typer.Option(help="Standard deviation of lengths over their mean (log-normal).")
]
Reuse = Annotated[float, typer.Option(help="Share of each prompt whose KV is there already.")]
Burstiness = Annotated[
    float, typer.Option(help="Standard deviation of the time between requests over its mean.")
]
TraceFile = Annotated[
    Path | None, typer.Option(help="Trace of requests, instead of --isl and --osl.")
]
PrefixCache = Annotated[
    bool, typer.Option(help="Count blocks that came before in the trace as cached.")
]
Percentile = Annotated[float, typer.Option(help="Share of requests to hold both for.")]
Weights = Annotated[
    str | None, typer.Option(help="Number format: bf16, fp8, nvfp4, …; as published.")
]
Kv = Annotated[str | None, typer.Option(help="Number format of the KV; bf16.")]
Engine = Annotated[
    str | None, typer.Option(help="Serving engine: vllm, sglang, trtllm, eastwest, tuned.")
]
Dollars = Annotated[float | None, typer.Option(help="Dollars an hour for one device.")]
Availability = Annotated[
    float | None, typer.Option(help="Hold hosts back so that the rest is up, such as 0.999.")
]
Skew = Annotated[
    float, typer.Option(help="Load of the busiest expert-parallel rank over the mean.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the plan as JSON.")]
YamlFile = Annotated[
    Path | None, typer.Option("--yaml", help="Write a configuration to serve with.")
]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write an interactive report.")]
PngFile = Annotated[Path | None, typer.Option("--png", help="Write the plots.")]


def plan_command(
    model: Model,
    hardware: Hardware,
    ttft: Ttft,
    tpot: Tpot,
    gpus: Gpus = None,
    budget: Budget = None,
    isl: Isl = None,
    osl: Osl = None,
    spread: Spread = 0.3,
    reuse: Reuse = 0.0,
    burstiness: Burstiness = 1.0,
    trace: TraceFile = None,
    prefix_cache: PrefixCache = False,
    percentile: Percentile = 0.9,
    weights: Weights = None,
    kv: Kv = None,
    stack: Engine = None,
    price: Dollars = None,
    availability: Availability = None,
    skew: Skew = 1.0,
    json_file: JsonFile = None,
    yaml_file: YamlFile = None,
    html_file: HtmlFile = None,
    png_file: PngFile = None,
) -> None:
    """Plan layouts and the prefill/decode split; or say not to split at all."""
    question = ask(
        model,
        hardware,
        ttft_s=duration_s(ttft, "--ttft", *_TTFT),
        tpot_s=duration_s(tpot, "--tpot", *_TPOT),
        devices=gpus,
        budget_per_hour=budget,
        workload=(
            _steady(isl, osl, spread, reuse, burstiness)
            if trace is None and not prefix_cache
            else _traced(trace, prefix_cache, isl or osl)
        ),
        percentile=percentile,
        weights=weights,
        kv=kv,
        stack=stack,
        price_per_hour=price,
        availability=availability,
        skew=skew,
    )
    answer = _planned(question)
    console.print(plan_view(answer))
    for path, write in (
        (json_file, write_json), (yaml_file, write_config), (html_file, _html), (png_file, _png),
    ):  # fmt: skip
        if path is not None:
            write(answer, path)
            console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _planned(question: Question) -> Plan:
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.percentage:.0f} %"),
        console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("planning", total=1.0)
        return plan(
            question, lambda what, share: progress.update(task, description=what, completed=share)
        )


def _steady(
    isl: str | None, osl: str | None, spread: float, reuse: float, burstiness: float
) -> Workload:
    if isl is None or osl is None:
        raise ConfigError("a plan needs a workload; allowed: --isl and --osl, or --trace")
    return steady(
        count_of(isl, "--isl", 1, TOKENS_MAX),
        count_of(osl, "--osl", 1, TOKENS_MAX),
        reuse=reuse,
        spread=spread,
        arrival_cv=burstiness,
    )


def _traced(path: Path | None, cached: bool, lengths: str | None) -> Workload:
    if path is None:
        raise ConfigError("--prefix-cache is for a trace; allowed: with --trace, else --reuse")
    if lengths is not None:
        raise ConfigError("a trace has lengths of its own; allowed: --trace, or --isl and --osl")
    trace = read_trace(path)
    for line in trace.skipped[:SKIPPED_SHOWN]:
        console.print(f"skipped {line}", markup=False, soft_wrap=True)
    if len(trace.skipped) > SKIPPED_SHOWN:
        console.print(f"skipped {len(trace.skipped) - SKIPPED_SHOWN:,} more lines")
    return trace.workload(cached=cached)


def _html(answer: Plan, path: Path) -> None:
    from deploy.plan_report import write_html

    write_html(answer, path)


def _png(answer: Plan, path: Path) -> None:
    from deploy.plan_report import write_png

    write_png(answer, path)
