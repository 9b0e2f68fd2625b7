"""What commands of `eastwest` have in common: options, and how they run and are broken off."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Annotated, Any

import typer

Address = Annotated[
    str, typer.Option("--address", "-a", help="host:port of the router.", show_default=True)
]
DEFAULT_ADDRESS = "127.0.0.1:50051"
Tenant = Annotated[str, typer.Option(help="Isolation domain of caches and sessions.")]
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
