"""The commands that plan: they need no worker and no network. `deploy.cli` mounts them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.plan_cli import plan_command
from deploy.terminal import console

planning_app = typer.Typer()
planning_app.command("plan")(plan_command)


@planning_app.command()
def roofline(
    model: Annotated[
        str, typer.Option(help="Name, or the path of a config.json or model directory.")
    ],
    hardware: Annotated[str, typer.Option(help="Name, or the path of a YAML file.")],
    weights: Annotated[
        str | None, typer.Option(help="Number format, such as fp8; as published without it.")
    ] = None,
    kv: Annotated[str | None, typer.Option(help="Number format of KV; bf16 without it.")] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="Of what moves between devices; as wide as weights, at least 8 bits."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences in the decode step that is shown.")] = 16,
    isl: Annotated[
        int | None, typer.Option(help="Tokens of a prompt; 4,096, or what the model has room for.")
    ] = None,
    osl: Annotated[int, typer.Option(help="Tokens of an answer.")] = 512,
    devices: Annotated[
        int | None, typer.Option(help="That share a replica; the least power of two that holds it.")
    ] = None,
    mfu: Annotated[float, typer.Option(help="Share of peak FLOP/s that prefill reaches.")] = 0.4,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers, in SI units.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the curves (extra 'plan').")] = None,
    html: Annotated[Path | None, typer.Option(help="The same, to look around in.")] = None,
) -> None:
    """Show the ideal rooflines of a model on a device: bytes, FLOPs, memory, scale-up, batches."""
    from deploy.roofline import roofline_tables, write_json
    from planner.hardware import find_device
    from planner.models import find_model
    from planner.roofline_report import case_of, roofline_report

    case = case_of(
        find_model(model), find_device(hardware), weights, kv, activations, batch, isl, osl,
        devices, mfu,
    )  # fmt: skip
    report = roofline_report(case)
    console.print(roofline_tables(report))
    if json_path is not None:
        write_json(report, json_path)
    if png is not None or html is not None:
        from deploy.roofline_plot import write_html, write_png

        for path, write in ((png, write_png), (html, write_html)):
            if path is not None:
                write(report, path)
