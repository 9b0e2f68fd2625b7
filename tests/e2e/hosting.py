"""What Ray actors of the tests host: replicas with simulated engines."""

from __future__ import annotations

from functools import partial

from deploy.replica import Identity, Replica
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import ModelError
from eastwest.testing.engine import SimulatedEngine
from eastwest.types import Role
from runtime.supervisor import WorkerSpec


def build(worker_id: str, role: Role, config: Config) -> Replica:
    clock = SystemClock()
    size = config.kv.block_tokens
    engine = SimulatedEngine(1024 // size, size)
    identity = Identity(worker_id, round(clock.wall_s() * 1e6), role, "127.0.0.1")
    return Replica(identity, engine, None, config, clock)


def refuse() -> Replica:
    raise ModelError("this checkpoint is truncated")


def a_spec(worker_id: str, role: Role, config: Config) -> WorkerSpec:
    return WorkerSpec(worker_id, partial(build, worker_id, role, config), cpus=1)
