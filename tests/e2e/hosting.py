"""What Ray actors of the tests host: replicas with simulated engines."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from deploy.replica import Identity, Replica
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import ModelError
from eastwest.messages import WorkerInfo
from eastwest.testing.engine import SimulatedEngine
from eastwest.types import Role
from runtime.rank import Rank, Ways
from runtime.rank_group import form_group
from runtime.rank_service import Place
from runtime.supervisor import WorkerSpec


async def build(
    worker_id: str,
    role: Role,
    config: Config,
    ranks: tuple[str, ...],
    kind: type[Replica] = Replica,
) -> Replica:
    clock = SystemClock()
    size = config.kv.block_tokens
    engine = SimulatedEngine(1024 // size, size)
    identity = Identity(worker_id, round(clock.wall_s() * 1e6), role, "127.0.0.1")
    place = Place(worker_id, identity.epoch, 0, engine.layout, "")

    async def load() -> Rank:
        return Rank(engine, Ways(), identity.epoch, config.kv, clock)

    group = await form_group(load(), ranks, place, silence_s=20.0)
    return kind(identity, group, None, config, clock)


class Defective(Replica):
    """One of whose own tasks fails as soon as a file is there; it takes the file with it."""

    trigger = Path()

    async def start(self) -> WorkerInfo:
        info = await super().start()
        self._spawn(self._fail(), "defective")
        return info

    async def _fail(self) -> None:
        while not self.trigger.exists():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        self.trigger.unlink()
        raise AssertionError("a defect of the worker's own")


async def build_defective(
    trigger: Path, worker_id: str, role: Role, config: Config, ranks: tuple[str, ...]
) -> Replica:
    replica = await build(worker_id, role, config, ranks, Defective)
    assert isinstance(replica, Defective)
    replica.trigger = trigger
    return replica


async def refuse(ranks: tuple[str, ...]) -> Replica:
    raise ModelError("this checkpoint is truncated")


def a_spec(worker_id: str, role: Role, config: Config) -> WorkerSpec:
    return WorkerSpec(worker_id, partial(build, worker_id, role, config), cpus=1)
