"""The thin Ray actor around a hosted worker: Ray owns its life, gRPC its data."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import ray

from eastwest.errors import EastWestError
from eastwest.messages import WorkerInfo

DEFECT_EXIT = 70


class Hosted(Protocol):
    """A worker that an actor can host; a plain class that runs without Ray just as well.

    defect: set when the worker cannot go on; its process ends then, and Ray makes another.
    """

    defect: asyncio.Event

    async def start(self) -> WorkerInfo:
        """Serve; returns who it is."""

    async def stop(self) -> None:
        """End all work and release everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A running worker and the process it lives in."""

    info: WorkerInfo
    pid: int


@ray.remote
class WorkerActor:
    """Hosts what `build` makes. Ray runs the constructor again after a crash, which makes a new
    incarnation."""

    def __init__(self, build: Callable[[], Hosted]) -> None:
        self._build = build
        self._hosted: Hosted | None = None
        self._placed: Placed | None = None
        self._watch: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._stopped = asyncio.Event()

    async def start(self) -> Placed:
        """Load and serve; later calls answer the same. Raises the worker's own typed errors."""
        async with self._starting:
            if self._placed is None:
                self._hosted = self._build()
                self._placed = Placed(await self._hosted.start(), os.getpid())
                self._watch = asyncio.create_task(_die_of(self._hosted.defect))
            return self._placed

    async def wait_stopped(self) -> None:
        """Returns when the worker was stopped; fails when its process dies."""
        await self._stopped.wait()

    async def stop(self) -> None:
        """End the worker; the process ends when the actor is given up."""
        async with self._starting:
            if self._watch is not None:
                self._watch.cancel()
            if self._hosted is not None:
                await self._hosted.stop()
        self._stopped.set()


async def _die_of(defect: asyncio.Event) -> None:
    await defect.wait()
    os._exit(DEFECT_EXIT)


def typed_cause(error: Exception) -> EastWestError | None:
    """The typed error that a remote call raised, if it was one of ours."""
    cause = getattr(error, "cause", error)
    return cause if isinstance(cause, EastWestError) else None
