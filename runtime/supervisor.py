"""Starts, watches and replaces worker actors, and says which of them are there.

start_worker ──▶ STARTING ──▶ up ──(process dies)──▶ down ──▶ STARTING (Ray restarts it) …
                               └──(stop_worker)──▶ down, gone
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError

from eastwest.errors import EastWestError, Unavailable
from runtime.actor import Hosted, Placed, WorkerActor, typed_cause

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 0.5
STOP_TIMEOUT_S = 30.0


class Membership(Protocol):
    """Who wants to know which workers are there; called on the event loop."""

    def add_worker(self, worker_id: str, address: str) -> None:
        """A worker serves at ``host:port``, which may differ from its former one."""

    async def remove_worker(self, worker_id: str) -> None:
        """The worker is gone. Idempotent."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What to start. `build` is pickled by reference and runs in the actor's process."""

    worker_id: str
    build: Callable[[], Hosted]
    cpus: float


@dataclass(slots=True)
class _Watched:
    spec: WorkerSpec
    actor: Any
    placed: asyncio.Future[Placed]
    latest: Placed | None = None
    task: asyncio.Task[None] | None = field(default=None)


class Supervisor:
    """One for all workers of a deployment."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._watched: dict[str, _Watched] = {}

    def start_worker(self, spec: WorkerSpec) -> asyncio.Future[Placed]:
        """Begin a worker; the future says when it serves first, or why it never did."""
        if spec.worker_id in self._watched:
            raise ValueError(f"worker {spec.worker_id} runs already")
        actor = WorkerActor.options(  # type: ignore[attr-defined]
            name=spec.worker_id, num_cpus=spec.cpus, max_restarts=-1
        ).remote(spec.build)
        watched = _Watched(spec, actor, asyncio.get_running_loop().create_future())
        self._watched[spec.worker_id] = watched
        watched.task = asyncio.create_task(self._watch(watched), name=f"watch {spec.worker_id}")
        return watched.placed

    async def stop_worker(self, worker_id: str) -> None:
        """End a worker for good: its work is ended, its memory freed, its process gone."""
        watched = self._watched.pop(worker_id)
        if watched.task is not None:
            watched.task.cancel()
            await asyncio.wait([watched.task])
        await self._membership.remove_worker(worker_id)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await watched.actor.stop.remote()
        except (RayActorError, RayTaskError, TimeoutError) as error:
            log.warning("worker %s did not stop by itself: %s", worker_id, error)
        ray.kill(watched.actor)

    async def close(self) -> None:
        """End all workers."""
        await asyncio.gather(*(self.stop_worker(w) for w in list(self._watched)))

    def workers(self) -> dict[str, Placed]:
        """Those that have served at least once, as they were last placed."""
        return {w: x.latest for w, x in self._watched.items() if x.latest is not None}

    async def _watch(self, watched: _Watched) -> None:
        worker_id = watched.spec.worker_id
        while True:
            try:
                placed = await watched.actor.start.remote()
            except (ActorUnavailableError, ActorDiedError) as error:
                log.warning("worker %s is not up: %s", worker_id, error)
                await asyncio.sleep(RESTART_PAUSE_S)
                continue
            except RayTaskError as error:
                self._refuse(watched, error)
                return
            log.info("worker %s serves at %s", worker_id, placed.info.address)
            watched.latest = placed
            if not watched.placed.done():
                watched.placed.set_result(placed)
            self._membership.add_worker(worker_id, placed.info.address)
            try:
                await watched.actor.wait_stopped.remote()
                return
            except RayActorError as error:
                log.warning("worker %s has died: %s", worker_id, error)
                await self._membership.remove_worker(worker_id)

    def _refuse(self, watched: _Watched, error: RayTaskError) -> None:
        """The worker says that it cannot start: a setting or a model that is wrong."""
        typed: EastWestError = typed_cause(error) or Unavailable(
            f"worker {watched.spec.worker_id} cannot start: {error.cause}"
        )
        if not watched.placed.done():
            watched.placed.set_exception(typed)
