"""Makes the replica that a worker process hosts, from the configuration alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from deploy.replica import Identity, Replica, pool_of
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import ConfigError
from eastwest.heap import keep_freed_memory
from eastwest.messages import Transport
from eastwest.ports import BlockStore, Buffer
from eastwest.types import Role
from runtime.rank import Rank, Ways
from runtime.rank_group import form_group
from runtime.rank_service import Place, RankServer
from runtime.supervisor import WorkerSpec


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
    store, rendezvous = open_rendezvous(host) if layout.world_size > 1 else (None, "")
    place = Place(worker_id, identity.epoch, layout.leader, layout, rendezvous)
    load = _load_rank(directory, role, config, place, store)
    group = await form_group(load, ranks, place, silence_s=config.router.worker_timeout_s)
    return Replica(identity, group, _open_store(config, group.kv.spec.dtype, group), config, clock)


def build_rank(role: Role, config: Config, host: str) -> RankServer:
    """A rank that is not the leader; runs in a process of its own."""
    keep_freed_memory()

    async def load(place: Place) -> Rank:
        from engine.catalog import resolve_model

        directory = await asyncio.to_thread(resolve_model, config.model)
        return await _load_rank(directory, role, config, place, None)

    return RankServer(host, load, silence_s=config.router.worker_timeout_s)
