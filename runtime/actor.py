"""The thin Ray actors around a hosted worker and around its other ranks: Ray owns their lives,
gRPC their data."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import ray

from eastwest.errors import EastWestError
from eastwest.garbage import settle
from eastwest.messages import WorkerInfo

DEFECT_EXIT = 70


class Hosted(Protocol):
    """A worker that an actor can host; a plain class that runs without Ray just as well.

    defect: set when the worker cannot go on; its process ends then. left: set when it has drained,
    and is to be stopped.
    """

    defect: asyncio.Event
    left: asyncio.Event

    async def start(self) -> WorkerInfo:
        """Serve; returns who it is."""

    def drain(self, timeout_s: float) -> None:
        """Begin to leave, as `runtime.leaving` has it."""

    async def stop(self) -> None:
        """End all work and release everything. Idempotent."""


class HostedRank(Protocol):
    """A rank that waits for its leader. ended: set when it has come to its end."""

    ended: asyncio.Event

    async def start(self) -> str:
        """Listen; returns ``host:port`` for the leader."""

    async def stop(self) -> None:
        """End it. Idempotent."""


# Makes a worker, given where its other ranks listen, in the order of their ranks.
BuildWorker = Callable[[tuple[str, ...]], Awaitable[Hosted]]
BuildRank = Callable[[], HostedRank]


@dataclass(frozen=True, slots=True)
class Placed:
    """A running worker and the processes of its ranks, the leader's first."""

    info: WorkerInfo
    pid: int
    other_pids: tuple[int, ...] = ()


@ray.remote
class WorkerActor:
    """Hosts what `build` makes: one incarnation of a worker, and its leading rank."""

    def __init__(self, build: BuildWorker) -> None:
        self._build = build
        self._hosted: Hosted | None = None
        self._watch: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._stopped = asyncio.Event()

    async def start(self, ranks: tuple[str, ...]) -> Placed:
        """Load and serve. Raises the worker's own typed errors."""
        async with self._starting:
            self._hosted = await self._build(ranks)
            placed = Placed(await self._hosted.start(), os.getpid())
            self._watch = asyncio.create_task(_die_of(self._hosted.defect))
            settle()
            return placed

    async def drain(self, timeout_s: float) -> None:
        """Let the worker leave; returns when it has left, and may be stopped."""
        assert self._hosted is not None
        self._hosted.drain(timeout_s)
        await self._hosted.left.wait()

    async def wait_stopped(self) -> None:
        """Returns when the worker has left or was stopped; fails when its process dies."""
        assert self._hosted is not None
        ends = [asyncio.ensure_future(e.wait()) for e in (self._stopped, self._hosted.left)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    async def stop(self) -> None:
        """End the worker; the process ends when the actor is given up."""
        async with self._starting:
            if self._watch is not None:
                self._watch.cancel()
            if self._hosted is not None:
                await self._hosted.stop()
        self._stopped.set()


@ray.remote
class RankActor:
    """Hosts one rank that follows a leader."""

    def __init__(self, build: BuildRank) -> None:
        self._build = build

    async def start(self) -> tuple[str, int]:
        """Listen for the leader: the address, and this process."""
        self._rank = self._build()
        address = await self._rank.start()
        self._watch = asyncio.create_task(_die_of(self._rank.ended))
        settle()
        return address, os.getpid()

    async def wait_stopped(self) -> None:
        """Fails when the process dies, which is how a rank ends."""
        await asyncio.Event().wait()


async def _die_of(defect: asyncio.Event) -> None:
    await defect.wait()
    os._exit(DEFECT_EXIT)


def typed_cause(error: Exception) -> EastWestError | None:
    """The typed error that a remote call raised, if it was one of ours."""
    cause = getattr(error, "cause", error)
    return cause if isinstance(cause, EastWestError) else None
