"""The `eastwest` command. Every failure is one clear line and a non-zero exit code:
1 for what went wrong, 2 for a command that is not understood, 130 for an interrupt."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import deploy.quiet  # noqa: F401 - before anything that imports gRPC
from deploy.bench_cli import bench_app
from deploy.command import (
    DEFAULT_ADDRESS,
    INTERRUPTED,
    Address,
    ConfigPath,
    Settings,
    Tenant,
    configured,
    run,
)
from deploy.explain import WIDTH, explanation_view
from deploy.planning_cli import planning_app
from deploy.report import links_lines, loads_lines, timing_table, usage_lines, workers_table
from deploy.sessions_cli import sessions_app
from deploy.settings import explained_yaml
from deploy.store_cli import store_app
from deploy.terminal import console, errors
from eastwest.client import AsyncClient, AsyncGeneration
from eastwest.errors import EastWestError
from eastwest.types import SamplingParams
from eastwest.wire import explanation_to_json

app = typer.Typer(
    name="eastwest",
    help="Disaggregated prefill/decode serving for large language models. "
    "Start with 'eastwest demo', then 'eastwest serve' and 'eastwest chat'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="The configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
layouts_app = typer.Typer(help="Parallel layouts.", no_args_is_help=True)
app.add_typer(layouts_app, name="layouts")
app.add_typer(planning_app)
app.add_typer(sessions_app, name="sessions")
app.add_typer(store_app, name="store")
app.add_typer(bench_app, name="bench")

SessionId = Annotated[
    str | None, typer.Option(help="Continue (or begin) a conversation that the server keeps.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same output.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer. Repeatable.")]
Timing = Annotated[bool, typer.Option("--timing", help="Show where the time went.")]
Timeout = Annotated[float | None, typer.Option(help="Deadline in seconds.")]
SloTtft = Annotated[float | None, typer.Option(help="First token wanted within, in seconds.")]
SloTpot = Annotated[float | None, typer.Option(help="And each one after it, in seconds.")]


@app.command()
def serve(
    config: ConfigPath = None,
    settings: Settings = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Join this Ray cluster instead of starting a local one."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Start store, Ray, router and workers; serve until SIGINT or SIGTERM."""
    from deploy.serve import serve as serve_until_cancelled

    _log(verbose)
    resolved = configured(config, settings)
    if not run(serve_until_cancelled(resolved, ray_address, console)):
        console.print("everything is stopped")


@app.command()
def router(
    join: Annotated[
        str | None, typer.Option(help="host:port of a router whose workers are served, too.")
    ] = None,
    worker: Annotated[
        list[str] | None, typer.Option(help="A worker, as name=host:port. Repeatable.")
    ] = None,
    config: ConfigPath = None,
    settings: Settings = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Start one more router over the workers of a deployment; serve until SIGINT or SIGTERM."""
    from deploy.another_router import route, worker_addresses

    _log(verbose)
    work = route(configured(config, settings), join, worker_addresses(worker or []), console)
    if not run(work):
        console.print("the router is stopped")


@app.command()
def demo(config: ConfigPath = None, settings: Settings = None) -> None:
    """One question through prefill, transfer and decode; the session spills and resumes."""
    from deploy.demo import run_demo

    logging.basicConfig(level=logging.ERROR)
    if not run(run_demo(configured(config, ["router.port=0", *(settings or [])]), console)):
        raise SystemExit(INTERRUPTED)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; '-' reads standard input.")],
    address: Address = DEFAULT_ADDRESS,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    session: SessionId = None,
    tenant: Tenant = "",
    timeout: Timeout = None,
    slo_ttft: SloTtft = None,
    slo_tpot: SloTpot = None,
    timing: Timing = False,
) -> None:
    """Continue a prompt."""
    text = sys.stdin.read() if prompt == "-" else prompt
    sampling = SamplingParams(temperature, seed=seed, stop=tuple(stop or ()), max_tokens=max_tokens)

    async def call() -> None:
        async with AsyncClient(address, tenant=tenant, timeout_s=timeout) as client:
            generation = client.generate(
                text, sampling=sampling, session=session, slo_ttft_s=slo_ttft, slo_tpot_s=slo_tpot
            )
            await _stream(generation, timing)

    run(call())


@app.command()
def chat(
    message: Annotated[
        str | None, typer.Argument(help="One message; without it, a conversation.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 1.0,
    seed: Seed = None,
    session: SessionId = None,
    tenant: Tenant = "",
    timeout: Timeout = None,
    slo_ttft: SloTtft = None,
    slo_tpot: SloTpot = None,
    timing: Timing = False,
) -> None:
    """Talk to the model; an empty line or end of input ends the conversation."""
    sampling = SamplingParams(temperature, seed=seed, max_tokens=max_tokens)

    async def call() -> None:
        history = [{"role": "system", "content": system}] if system else []
        async with AsyncClient(address, tenant=tenant, timeout_s=timeout) as client:
            while text := message if message is not None else await _ask():
                turn = [*history, {"role": "user", "content": text}]
                generation = client.chat(
                    turn,
                    sampling=sampling,
                    session=session,
                    slo_ttft_s=slo_ttft,
                    slo_tpot_s=slo_tpot,
                )
                answer = await _stream(generation, timing)
                # A session keeps its history on the server.
                history = [] if session else [*turn, {"role": "assistant", "content": answer}]
                if message is not None:
                    return

    run(call())


@app.command()
def status(address: Address = DEFAULT_ADDRESS) -> None:
    """Show the router's load and its workers."""

    async def call() -> None:
        async with AsyncClient(address, timeout_s=10.0) as client:
            info, model, loads = (
                await client.server_info(),
                await client.model_info(),
                await client.loads(),
            )
            console.print(
                f"eastwest {info.version}, router {info.router_id}, up {info.uptime_s:.0f} s, "
                f"model {model.name} ({model.dtype}, context {model.context_tokens:,} tokens)"
            )
            console.print(loads_lines(loads))
            console.print(workers_table(loads.workers))
            if links := links_lines(loads.workers):
                console.print(links)

    run(call())


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="As the client named it, or was told.")],
    address: Address = DEFAULT_ADDRESS,
    tenant: Tenant = "",
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for machines.")] = False,
) -> None:
    """Show why a request went where it went, and what came of the predictions."""

    async def call() -> None:
        async with AsyncClient(address, tenant=tenant, timeout_s=10.0) as client:
            explanation = await client.explain(request_id)
        if as_json:
            console.print_json(data=explanation_to_json(explanation))
        else:
            console.print(explanation_view(explanation), width=min(console.width, WIDTH))

    run(call())


@app.command()
def drain(
    worker_id: Annotated[str, typer.Argument(help="Name of the worker; see 'eastwest status'.")],
    address: Address = DEFAULT_ADDRESS,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds after which running requests are moved to other workers."),
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Let it stay.")] = False,
) -> None:
    """Let a worker leave without a failed request: no new work, its sessions stored, and gone."""
    from deploy.drain import cancel_drain
    from deploy.drain import drain as drain_worker

    if cancel:
        run(cancel_drain(address, worker_id, console))
    elif not run(drain_worker(address, worker_id, timeout, console)):
        console.print(f"the drain goes on; 'eastwest drain {worker_id} --cancel' ends it")
        raise SystemExit(INTERRUPTED)


@app.command()
def models(config: ConfigPath = None, settings: Settings = None) -> None:
    """List the models that can be served by name."""
    from engine.catalog import builtin_models

    table = Table(box=None)
    for column in ("name", "what it is", "licence", "ready"):
        table.add_column(column)
    for entry in builtin_models(configured(config, settings).model):
        ready = "yes" if entry.ready else "downloaded on first use"
        table.add_row(entry.name, entry.description, entry.licence, ready)
    console.print(table)
    console.print(
        "model.source also takes the path of a Hugging Face directory or GGUF file, "
        "or a hub id (owner/name)."
    )


@app.command()
def calibrate(
    config: ConfigPath = None,
    settings: Settings = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the device goes.")] = Path(
        "calibrated.yaml"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="About a minute, and rougher.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Measure this machine with the real engine, as a device for the planner."""
    from deploy.calibrate_cli import run_calibrate

    run_calibrate(configured(config, settings), output, console, quick=quick, force=force)


@layouts_app.command("explain")
def layouts_explain(
    prefill: Annotated[
        str | None, typer.Option(help="Layout of a prefill replica, such as tp=4.")
    ] = None,
    decode: Annotated[
        str | None, typer.Option(help="Layout of a decode replica, such as pp=2,tp=2.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="As model.source; of a directory only config.json is read."),
    ] = None,
    config: ConfigPath = None,
    settings: Settings = None,
) -> None:
    """Show which rank sends which KV to which, and how much of it."""
    from deploy.layouts import explain_pair

    console.print(explain_pair(configured(config, settings), model, prefill, decode))


@config_app.command("show")
def config_show(config: ConfigPath = None, settings: Settings = None) -> None:
    """Print the resolved configuration as YAML, each setting with what it means."""
    text = explained_yaml(configured(config, settings))
    console.print(text, end="", markup=False, soft_wrap=True)


def _log(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


async def _ask() -> str:
    try:
        return (await asyncio.to_thread(console.input, "[bold]you:[/] ")).strip()
    except EOFError:
        return ""


async def _stream(generation: AsyncGeneration, timing: bool) -> str:
    async for chunk in generation:
        console.print(chunk.text, end="", markup=False, soft_wrap=True)
    console.print()
    completion = await generation
    if timing:
        console.print(timing_table(completion))
        console.print(usage_lines(completion))
        console.print(f"why there: eastwest explain {completion.request_id}", markup=False)
    return completion.text


def main() -> None:
    """Entry point of the `eastwest` command."""
    try:
        app()
    except EastWestError as error:
        phase = f" (in phase {error.phase})" if error.phase else ""
        errors.print(f"eastwest: {error.message}{phase}", markup=False, soft_wrap=True)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
