"""Makes the replica that a worker process hosts, from the configuration alone."""

from __future__ import annotations

from functools import partial

from deploy.replica import Identity, Replica, pool_of
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import ConfigError
from eastwest.heap import keep_freed_memory
from eastwest.types import Role
from runtime.supervisor import WorkerSpec


def build_replica(worker_id: str, role: Role, config: Config, host: str) -> Replica:
    """Load the model and put a replica together; runs in the worker's process.

    The epoch is the wall clock in microseconds: every incarnation has a larger one than the last.
    """
    from engine.catalog import resolve_model
    from engine.torch_engine import load_engine
    from kv_store.connect import open_block_store

    keep_freed_memory()
    clock = SystemClock()
    directory = resolve_model(config.model)
    try:
        engine = load_engine(directory, config.model, pool_of(config, role), config.kv)
    except ConfigError as error:
        raise ConfigError(f"section {role.value}: {error.message}") from error
    store = None
    if config.store.enabled and config.store.url is not None:
        store = open_block_store(
            config.store,
            config.store.url,
            engine.model.kv,
            config.kv.block_tokens,
            engine.model.fingerprint,
            clock,
        )
    identity = Identity(worker_id, round(clock.wall_s() * 1e6), role, host)
    return Replica(identity, engine, store, config, clock)


def worker_specs(config: Config, host: str) -> list[WorkerSpec]:
    """All workers that the configuration asks for."""
    return [
        worker_spec(config, role, index, host)
        for role in Role
        for index in range(pool_of(config, role).replicas)
    ]


def worker_spec(config: Config, role: Role, index: int, host: str) -> WorkerSpec:
    """One worker of a pool. `index` makes its name."""
    worker_id = f"{role.value}-{index}"
    build = partial(build_replica, worker_id, role, config, host)
    return WorkerSpec(worker_id, build, pool_of(config, role).threads)
