"""Makes the replica that a worker process hosts, from the configuration alone."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.replica import Identity, Replica, pool_of
from deploy.ways import HostWays
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import ConfigError
from eastwest.heap import keep_freed_memory
from eastwest.ports import BlockStore
from eastwest.types import Role
from runtime.rank import Rank
from runtime.rank_group import RankGroup, form_group
from runtime.rank_service import Place, RankServer
from runtime.supervisor import WorkerSpec

if TYPE_CHECKING:
    from engine.torch_engine import TorchEngine


async def build_replica(
    worker_id: str, role: Role, config: Config, host: str, ranks: tuple[str, ...]
) -> Replica:
    """Load the model and put a replica together; runs in the process of its leading rank.

    ranks: where the other ranks listen, in order. The epoch is the wall clock in microseconds:
    every incarnation has a larger one than the last.
    """
    from engine.catalog import resolve_model
    from engine.process_groups import open_rendezvous

    keep_freed_memory()
    clock = SystemClock()
    directory = await asyncio.to_thread(resolve_model, config.model)
    layout = pool_of(config, role).layout.layout()
    identity = Identity(worker_id, round(clock.wall_s() * 1e6), role, host)
    meeting, rendezvous = open_rendezvous(host) if layout.world_size > 1 else (None, "")
    place = Place(worker_id, identity.epoch, layout.leader, layout, rendezvous)
    load = _load_rank(directory, role, config, place, meeting)
    group = await form_group(load, ranks, place, silence_s=config.router.worker_timeout_s)
    return Replica(identity, group, _open_store(config, group), config, clock)


def build_rank(role: Role, config: Config, host: str) -> RankServer:
    """A rank that is not the leader; runs in a process of its own."""
    keep_freed_memory()

    async def load(place: Place) -> Rank:
        from engine.catalog import resolve_model
        from engine.process_groups import join_rendezvous

        directory = await asyncio.to_thread(resolve_model, config.model)
        meeting = await asyncio.to_thread(join_rendezvous, place.rendezvous)
        return await _load_rank(directory, role, config, place, meeting)

    return RankServer(host, load, silence_s=config.router.worker_timeout_s)


async def _load_rank(
    directory: Path, role: Role, config: Config, place: Place, meeting: object | None
) -> Rank:
    """One rank's engine, with its KV where others can reach it by themselves if they may."""
    from engine.process_groups import connect
    from engine.torch_engine import compute_device, load_engine

    pool, clock = pool_of(config, role), SystemClock()
    host_ways = HostWays(config.kv, clock)

    def load() -> TorchEngine:
        comm = None
        if meeting is not None:
            comm = connect(meeting, place.layout, place.rank, compute_device())
        return load_engine(
            directory,
            config.model,
            pool,
            config.kv,
            rank=place.rank,
            comm=comm,
            allocate=host_ways.allocate,
        )

    try:
        engine = await asyncio.to_thread(load)
    except ConfigError as error:
        raise ConfigError(f"section {role.value}: {error.message}") from error
    try:
        ways = host_ways.ways()
    except ConfigError:
        engine.close()
        raise
    return Rank(engine, ways, place.epoch, config.kv, clock)


def _open_store(config: Config, group: RankGroup) -> BlockStore | None:
    from kv_store.connect import open_block_store

    if not config.store.enabled or config.store.url is None:
        return None
    kv = group.kv
    # Blocks of another dtype are other blocks, though the model is the same.
    name = f"{group.model.fingerprint}.{kv.spec.dtype}"
    return open_block_store(
        config.store, config.store.url, kv.spec, kv.block_tokens, name, SystemClock()
    )


def worker_specs(config: Config, host: str) -> list[WorkerSpec]:
    """All workers that the configuration asks for."""
    return [
        worker_spec(config, role, index, host)
        for role in Role
        for index in range(pool_of(config, role).replicas)
    ]


def worker_spec(config: Config, role: Role, index: int, host: str) -> WorkerSpec:
    """One worker of a pool. `index` makes its name."""
    worker_id, pool = f"{role.value}-{index}", pool_of(config, role)
    layout = pool.layout.layout()
    return WorkerSpec(
        worker_id,
        partial(build_replica, worker_id, role, config, host),
        pool.threads,
        ranks=layout.world_size,
        leader=layout.leader,
        build_rank=partial(build_rank, role, config, host),
    )
