"""The `eastwest calibrate` command: measure, show, write."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.writing import writing
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import ConfigError


def run_calibrate(
    config: Config, output: Path, console: Console, *, quick: bool, force: bool
) -> None:
    """Writes the device to `output`, which names it. Raises `ConfigError` where that exists,
    unless forced, or cannot be written; and what `calibrate` raises."""
    if output.exists() and not force:
        raise ConfigError(f"{output} exists; allowed: another --output, or --force to replace it")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} is no directory; allowed: one that exists")
    from deploy.calibrate.machine import FULL_DEPTH, QUICK_DEPTH, calibrate, device_yaml
    from deploy.calibrate.report import calibration_report

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)

        def report(doing: str, done: float) -> None:
            progress.update(task, description=doing, completed=done)

        depth = QUICK_DEPTH if quick else FULL_DEPTH
        found = calibrate(config, device_name(output), depth, SystemClock(), report)
    console.print(calibration_report(found))
    write_new(output, device_yaml(found.device), force=force)
    console.print(f"\nwritten to {output}", markup=False, soft_wrap=True)


def device_name(output: Path) -> str:
    """That of the file, as far as a device can be called so."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", output.stem.lower()).lstrip("_.-")[:64]
    return name or "calibrated"


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Raises `ConfigError` where `path` cannot be written, or exists and is not to be replaced."""
    with writing(path), path.open("w" if force else "x", encoding="utf-8") as file:
        file.write(text)
