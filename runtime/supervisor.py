"""Starts, watches and replaces workers, each a group of rank actors, and says which are there.

start_worker ──▶ STARTING ──▶ up ──(a rank dies)──▶ down: all its ranks are ended ──▶ STARTING …
                               ├──(stop_worker)──▶ down, gone
                               └──(drained, by whomever)──▶ down, gone
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from eastwest.errors import ConfigError, EastWestError, Unavailable
from runtime.actor import BuildRank, BuildWorker, Placed, RankActor, WorkerActor, typed_cause

log = logging.getLogger(__name__)

# The pause before a worker is started again doubles, up to the longest, until one has served.
RESTART_PAUSE_S = 0.5
RESTART_PAUSE_MAX_S = 30.0
STOP_TIMEOUT_S = 30.0

_DEAD = (ActorUnavailableError, ActorDiedError)


class Membership(Protocol):
    """Who wants to know which workers are there; called on the event loop."""

    def add_worker(self, worker_id: str, address: str) -> None:
        """A worker serves at ``host:port``, which may differ from its former one."""

    async def remove_worker(self, worker_id: str) -> None:
        """The worker is gone. Idempotent."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What to start. build: pickled by reference, run in the leader's process; build_rank: in
    each other rank's. ranks, leader: how many there are, and which leads. cpus, gpus: of one."""

    worker_id: str
    build: BuildWorker
    cpus: float
    gpus: float = 0.0
    ranks: int = 1
    leader: int = 0
    build_rank: BuildRank | None = None


@dataclass(slots=True)
class _Watched:
    spec: WorkerSpec
    placed: asyncio.Future[Placed]
    room: PlacementGroup | None = None
    leader: Any = None
    others: list[Any] = field(default_factory=list)
    latest: Placed | None = None
    pause_s: float = RESTART_PAUSE_S
    left: bool = False
    task: asyncio.Task[None] | None = None


class Supervisor:
    """One for all workers of a deployment."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._watched: dict[str, _Watched] = {}

    def start_worker(self, spec: WorkerSpec) -> asyncio.Future[Placed]:
        """Begin a worker; the future says when it serves first, or why it never did."""
        if spec.worker_id in self._watched:
            raise ValueError(f"worker {spec.worker_id} runs already")
        watched = _Watched(spec, asyncio.get_running_loop().create_future())
        self._watched[spec.worker_id] = watched
        watched.task = asyncio.create_task(self._watch(watched), name=f"watch {spec.worker_id}")
        return watched.placed

    async def drain_worker(self, worker_id: str, timeout_s: float) -> None:
        """Let a worker leave by itself (`runtime.leaving`); returns when it is gone. `Unavailable`
        where it is not up, or is lost meanwhile."""
        watched = self._watched[worker_id]
        if watched.leader is None or watched.task is None:
            raise Unavailable(f"worker {worker_id} is down; allowed: workers that are up")
        try:
            await watched.leader.drain.remote(timeout_s)
        except RayActorError as error:
            # Its process may be ended before its answer is out.
            if not watched.left:
                raise Unavailable(f"worker {worker_id} was lost while it drained") from error
        await asyncio.wait([watched.task])

    async def stop_worker(self, worker_id: str) -> None:
        """End a worker for good: its work is ended, its memory freed, its processes gone."""
        watched = self._watched.pop(worker_id)
        if watched.task is not None:
            watched.task.cancel()
            await asyncio.wait([watched.task])
        await self._membership.remove_worker(worker_id)
        await self._end(watched)

    async def _end(self, watched: _Watched) -> None:
        """Stop its ranks, in order where they do so in time, and give back their room."""
        worker_id = watched.spec.worker_id
        if watched.leader is not None:
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await watched.leader.stop.remote()
            except (RayActorError, RayTaskError, TimeoutError) as error:
                log.warning("worker %s did not stop by itself: %s", worker_id, error)
        _kill(watched)
        if watched.room is not None:
            remove_placement_group(watched.room)
            watched.room = None

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
                placed = await self._launch(watched)
            except _DEAD as error:
                log.warning("worker %s is not up: %s", worker_id, error)
            except (RayTaskError, ConfigError) as error:
                _kill(watched)
                self._refuse(watched, error)
                return
            else:
                log.info("worker %s serves at %s", worker_id, placed.info.address)
                watched.latest, watched.pause_s = placed, RESTART_PAUSE_S
                if not watched.placed.done():
                    watched.placed.set_result(placed)
                self._membership.add_worker(worker_id, placed.info.address)
                if not await self._lives(watched):
                    log.info("worker %s has left", worker_id)
                    watched.left = True
                    await self._end(watched)
                    await self._membership.remove_worker(worker_id)
                    self._watched.pop(worker_id, None)
                    return
                await self._membership.remove_worker(worker_id)
            # A replica with one dead rank is dead as a whole.
            _kill(watched)
            await asyncio.sleep(watched.pause_s)
            watched.pause_s = min(2 * watched.pause_s, RESTART_PAUSE_MAX_S)

    async def _launch(self, watched: _Watched) -> Placed:
        """Start all actors of a worker; there when it serves."""
        spec = watched.spec
        room = watched.room
        if room is None:
            room = watched.room = _room(spec)
            await room.ready()

        def options(rank: int, name: str) -> dict[str, Any]:
            return {
                "name": f"{spec.worker_id}/{name}",
                "num_cpus": spec.cpus,
                "num_gpus": spec.gpus,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    room, placement_group_bundle_index=rank
                ),
            }

        kind = f"{id(watched)}-{asyncio.get_running_loop().time()}"
        watched.others = [
            RankActor.options(**options(rank, f"rank-{rank}-{kind}")).remote(spec.build_rank)  # type: ignore[attr-defined]
            for rank in range(spec.ranks)
            if rank != spec.leader
        ]
        found = await asyncio.gather(*(actor.start.remote() for actor in watched.others))
        watched.leader = WorkerActor.options(**options(spec.leader, f"leader-{kind}")).remote(  # type: ignore[attr-defined]
            spec.build
        )
        placed: Placed = await watched.leader.start.remote(tuple(address for address, _ in found))
        return replace(placed, other_pids=tuple(pid for _, pid in found))

    async def _lives(self, watched: _Watched) -> bool:
        """Until a rank dies; False where the worker has left instead."""
        actors = [watched.leader, *watched.others]
        ends = [asyncio.ensure_future(actor.wait_stopped.remote()) for actor in actors]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.add_done_callback(lambda e: e.cancelled() or e.exception())
                end.cancel()
        for end in done:
            if end.cancelled() or (error := end.exception()) is None:
                return False
            if not isinstance(error, RayActorError):
                raise error
            log.warning("worker %s has lost a rank: %s", watched.spec.worker_id, error)
        return True

    def _refuse(self, watched: _Watched, error: Exception) -> None:
        """The worker says that it cannot start: a setting or a model that is wrong."""
        typed: EastWestError = typed_cause(error) or Unavailable(
            f"worker {watched.spec.worker_id} cannot start: {getattr(error, 'cause', error)}"
        )
        if not watched.placed.done():
            watched.placed.set_exception(typed)


def _room(spec: WorkerSpec) -> PlacementGroup:
    """A bundle for each rank, near each other where possible. `ConfigError` where the cluster
    could never have it."""
    bundle = {"CPU": spec.cpus, "GPU": spec.gpus}
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, one in bundle.items():
        if spec.ranks * one > there.get(kind, 0):
            raise ConfigError(
                f"{spec.worker_id} needs {spec.ranks} ranks of {one:g} {kind}; the cluster has "
                f"{there.get(kind, 0):g} {kind} in all"
            )
    wanted = {kind: one for kind, one in bundle.items() if one}
    room: PlacementGroup = placement_group([dict(wanted)] * spec.ranks, strategy="PACK")
    return room


def _kill(watched: _Watched) -> None:
    for actor in [watched.leader, *watched.others]:
        if actor is not None:
            ray.kill(actor)
    watched.leader, watched.others = None, []
