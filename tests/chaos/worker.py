"""A worker process that tests may kill: a whole replica with a SIMULATED engine, without Ray.

    python -m tests.chaos.worker '{"worker_id": …}'

It says where it listens in one line of JSON, and ends with its standard input. `commits` and
`pushes` are where others are told to find it: proxies of the test, or nothing for itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from deploy.replica import Identity, Replica, pool_of
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.messages import RankEndpoint, Transport, WorkerInfo
from eastwest.ports import StepProgress, StepRow
from eastwest.testing.engine import SPEC, SimulatedEngine
from eastwest.types import Role, SampledToken
from kv_store.connect import open_block_store
from runtime.rank import Rank, Ways
from runtime.rank_group import Breakage, RankGroup

HOST = "127.0.0.1"


@dataclass(frozen=True)
class WorkerOrder:
    """What to host. config: as `Config` takes it. step_s: what an engine step takes at least."""

    worker_id: str
    role: str
    config: dict[str, Any] = field(default_factory=dict)
    step_s: float = 0.0
    commits: str = ""
    pushes: str = ""


class _Engine(SimulatedEngine):
    """Slow enough for things to happen to its requests. step_s: of a step, at least."""

    step_s = 0.0

    def step(
        self, rows: Sequence[StepRow], progress: StepProgress | None = None
    ) -> list[SampledToken | None]:
        time.sleep(self.step_s)
        return super().step(rows, progress)


class _Group:
    """A `RankGroup` of one rank that names another place for frames than the one it listens at."""

    def __init__(self, group: RankGroup, pushes: str) -> None:
        self._group = group
        self._pushes = pushes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    @property
    def listens_at(self) -> str:
        return self._group.endpoints(0, Transport.GRPC)[0].address

    def endpoints(self, group: int, transport: Transport) -> tuple[RankEndpoint, ...]:
        own = self._group.endpoints(group, transport)
        return tuple(replace(end, address=self._pushes or end.address) for end in own)


class _Replica(Replica):
    """Names another place for commits than the one it listens at."""

    commits = ""

    def info(self) -> WorkerInfo:
        info = super().info()
        return replace(info, address=self.commits or info.address)


async def host(order: WorkerOrder) -> None:
    """Until standard input ends, or the replica does."""
    config, clock, role = Config.model_validate(order.config), SystemClock(), Role(order.role)
    identity = Identity(order.worker_id, round(clock.wall_s() * 1e6), role, HOST)
    pool, size = pool_of(config, role), config.kv.block_tokens
    engine = _Engine(pool.kv_tokens // size, size)
    engine.step_s = order.step_s
    rank = Rank(engine, Ways(), identity.epoch, config.kv, clock)
    group = _Group(RankGroup(rank, [], Breakage()), order.pushes)
    store = None
    if config.store.enabled and config.store.url is not None:
        fingerprint = engine.model.fingerprint
        store = open_block_store(config.store, config.store.url, SPEC, size, fingerprint, clock)
    replica = _Replica(identity, cast(RankGroup, group), store, config, clock)
    replica.commits = order.commits
    info = await replica.start()
    print(json.dumps({"control": info.address, "pushes": group.listens_at}), flush=True)  # noqa: T201
    parent = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    defect = asyncio.create_task(replica.defect.wait())
    await asyncio.wait([parent, defect], return_when=asyncio.FIRST_COMPLETED)
    sys.exit(70 if defect.done() else 0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    asyncio.run(host(WorkerOrder(**json.loads(sys.argv[1]))))
