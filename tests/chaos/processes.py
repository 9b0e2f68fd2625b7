"""Processes of a deployment that a test may kill, freeze and start again; each logs to a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.chaos.worker import WorkerOrder

START_S = 120.0


class Process:
    """One process, in one incarnation at a time. The log keeps what all of them said."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Begin an incarnation."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    async def line(self) -> str:
        """The next line that it prints; `AssertionError` where it ends instead."""
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(START_S):
            line = await self._process.stdout.readline()
        assert line, f"{self.name} has ended: {self.log.read_text()[-2000:]}"
        return line.decode().strip()

    @property
    def running(self) -> bool:
        """Whether there is an incarnation, frozen or not."""
        return self._process is not None and self._process.returncode is None

    async def kill(self) -> None:
        """End it at once. Idempotent."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT. Idempotent."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.running and self._process is not None:
            self._process.send_signal(number)


def worker_process(order: WorkerOrder, logs: Path) -> Process:
    """See `tests.chaos.worker`."""
    command = [sys.executable, "-m", "tests.chaos.worker", json.dumps(asdict(order))]
    return Process(order.worker_id, command, logs / f"{order.worker_id}.log")


def router_process(name: str, arguments: Sequence[str], logs: Path) -> Process:
    """`eastwest router` itself."""
    command = [sys.executable, "-m", "deploy.cli", "router", "-v", *arguments]
    return Process(name, command, logs / f"{name}.log")
