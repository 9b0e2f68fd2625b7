"""Bytes of one frame on their way to a socket, from where they lie."""

from __future__ import annotations

import asyncio


class Parts:
    """Bytes that lie in several places. size: of all that is left."""

    def __init__(self, parts: list[memoryview]) -> None:
        self.size = sum(len(part) for part in parts)
        self.parts = parts
        self.sent: asyncio.Future[None] | None = None

    def take(self, count: int) -> list[memoryview]:
        """The first `count` bytes, which are not left any more."""
        self.size -= count
        if not self.size:
            taken, self.parts = self.parts, []
            return taken
        for i, part in enumerate(self.parts):
            if count < len(part):
                taken = [*self.parts[:i], part[:count]]
                self.parts[: i + 1] = [part[count:]]
                return taken
            count -= len(part)
        raise AssertionError("more than there is")

    def detach(self) -> None:
        """Keep a copy of what is left."""
        self.parts = [memoryview(b"".join(self.parts))]
