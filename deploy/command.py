"""What commands of `eastwest` have in common: options, and how they run and are broken off."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from eastwest.config import Config, load_config
from eastwest.errors import ConfigError

Address = Annotated[
    str, typer.Option("--address", "-a", help="host:port of the router.", show_default=True)
]
DEFAULT_ADDRESS = "127.0.0.1:50051"
Tenant = Annotated[str, typer.Option(help="Isolation domain of caches and sessions.")]
ConfigPath = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file; see 'eastwest config show'.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="One setting, such as decode.replicas=2. Repeatable."),
]
INTERRUPTED = 130


def run(work: Coroutine[Any, Any, None]) -> bool:
    """Run to the end; False where SIGINT or SIGTERM broke it off. Clean-up is never broken off:
    the first signal begins it, and later ones change nothing."""

    async def main() -> bool:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        signalled = False

        def end() -> None:
            nonlocal signalled
            if not signalled:
                signalled = True
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end)
        try:
            await task
        except asyncio.CancelledError:
            if not signalled:
                raise
        return not signalled

    return asyncio.run(main())


def configured(path: Path | None, settings: list[str] | None) -> Config:
    """The configuration that a file and `--set` give. Raises `ConfigError`."""
    overrides: dict[str, Any] = {}
    for setting in settings or []:
        name, equals, raw = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting!r} is not understood; allowed: section.field=value")
        node = overrides
        *sections, field = name.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        try:
            node[field] = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value is not valid YAML") from error
    return load_config(path, overrides=overrides)
