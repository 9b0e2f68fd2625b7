"""How a test waits for what it made happen, and holds back what it wants to happen later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Changes:
    """Lets tasks wait until something is true, on one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Something has changed: everyone who waits looks again."""
        self._event.set()
        self._event = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()`, which may change with a `notify` only."""
        while not holds():
            await self._event.wait()


class Gate:
    """Lets work pass: freely (as in the beginning), or so many pieces as are allowed."""

    def __init__(self) -> None:
        self._permits: int | None = None
        self._changes = Changes()

    def hold(self) -> None:
        """Let nothing pass."""
        self._permits = 0

    def allow(self, count: int) -> None:
        """Let `count` more pieces pass."""
        self._permits = (self._permits or 0) + count
        self._changes.notify()

    def open(self) -> None:
        """Let everything pass."""
        self._permits = None
        self._changes.notify()

    async def passed(self) -> None:
        """Wait for one's turn."""
        await self._changes.until(lambda: self._permits != 0)
        if self._permits is not None:
            self._permits -= 1
