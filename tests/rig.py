"""A whole deployment in one process, without Ray: replicas with simulated engines, real gRPC
between router and workers and between the workers, and the real client.

Every rig ends by asking all replicas' auditors for zero leaks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.replica import Identity, Replica
from eastwest.client import AsyncClient
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.layout import KVSpec
from eastwest.ports import BlockStore, Engine, ServingCosts
from eastwest.testing.engine import SPEC, SimulatedEngine, simulated_group
from eastwest.types import Liveness, Role
from kv_store.sessions import SessionStore
from kv_transfer.push import FrameTap, pass_through
from router.server import Router
from tests.rank_groups import LocalGroup, local_group

WAIT_S = 20.0


def a_config(**sections: dict[str, Any]) -> Config:
    """Small blocks, chunks and pools, and no prompt on a decode worker; sections override field by
    field."""
    pool = {"kv_tokens": 1024, "step_tokens": 32, "running_max": 8}
    tree: dict[str, dict[str, Any]] = {
        "router": {
            "port": 0,
            "heartbeat_s": 0.1,
            "worker_timeout_s": 10.0,
            "conditional": False,
        },
        "prefill": dict(pool),
        "decode": dict(pool),
        "aggregated": dict(pool),
        "kv": {"block_tokens": 8, "lease_s": 30.0},
        "store": {"idle_s": 3600.0, "timeout_s": 5.0},
    }
    for name, fields in sections.items():
        tree.setdefault(name, {}).update(fields)
    return Config.model_validate(tree)


@dataclass
class Rig:
    """What a test works with."""

    config: Config
    router: Router
    client: AsyncClient
    address: str
    store: BlockStore | None
    tap: FrameTap
    spec: KVSpec = SPEC
    engines: dict[str, Engine] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    groups: dict[str, LocalGroup] = field(default_factory=dict)
    epoch: int = 0

    def engine(self, worker_id: str) -> SimulatedEngine:
        engine = self.engines[worker_id]
        assert isinstance(engine, SimulatedEngine)
        return engine

    async def start(
        self, worker_id: str, role: Role, engines: Sequence[Engine] | None = None
    ) -> Replica:
        """A new replica that the router knows; `engines` are its ranks, simulated by default."""
        self.epoch += 1
        pool = getattr(self.config, role.value)
        size = pool.block_tokens or self.config.kv.block_tokens
        if engines is None:
            engines = simulated_group(pool.layout.layout(), pool.kv_tokens // size, size, self.spec)
        identity = Identity(worker_id, self.epoch, role, "127.0.0.1")
        local = await local_group(
            engines, worker_id=worker_id, epoch=self.epoch, config=self.config.kv, tap=self.tap
        )
        replica = Replica(identity, local.group, self.store, self.config, SystemClock())
        info = await replica.start()
        self.engines[worker_id] = engines[info.layout.leader]
        self.replicas[worker_id], self.groups[worker_id] = replica, local
        self.router.add_worker(worker_id, info.address)
        return replica

    async def stop(self, worker_id: str) -> None:
        await self.router.remove_worker(worker_id)
        await self._end(worker_id)

    async def kill(self, worker_id: str) -> None:
        """The replica is gone; the router finds out by its stream."""
        await self._end(worker_id)

    async def close(self) -> None:
        """End all replicas."""
        for worker_id in list(self.replicas):
            await self._end(worker_id)

    async def _end(self, worker_id: str) -> None:
        await self.replicas.pop(worker_id).stop()
        await self.groups.pop(worker_id).stop_servers()

    async def until_up(self, worker_id: str) -> None:
        """Until the router has a stream to the worker."""
        async with asyncio.timeout(WAIT_S):
            while True:
                workers = (await self.client.server_info()).workers
                if any(w.worker_id == worker_id and w.liveness is Liveness.UP for w in workers):
                    return
                await asyncio.sleep(0.005)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, generously, for something that no event announces."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Until no replica works or holds blocks for a request any more."""
        for replica in self.replicas.values():
            await self.until(lambda r=replica: _quiet(r))  # type: ignore[misc]

    def assert_clean(self) -> None:
        """The auditors find nothing, on any replica."""
        for worker_id, replica in self.replicas.items():
            audit = replica.audit()
            assert not audit.findings, f"{worker_id}: {audit.findings}"
            assert audit.leaked_blocks == 0


def _quiet(replica: Replica) -> bool:
    load = replica.load()
    held = [o for o in replica.audit().owners if not o.startswith("session")]
    return not (load.running or load.waiting or held or replica.transfers_open)


@asynccontextmanager
async def a_rig(
    model_dir: Path,
    *,
    prefill: int = 1,
    decode: int = 1,
    aggregated: int = 0,
    config: Config | None = None,
    store: BlockStore | None = None,
    sessions: SessionStore | None = None,
    tap: FrameTap = pass_through,
    make_engines: Callable[[Role], Sequence[Engine]] | None = None,
    spec: KVSpec = SPEC,
    costs: ServingCosts | None = None,
) -> AsyncIterator[Rig]:
    """`model_dir` holds the tokenizer; `make_engines` replaces the simulated ranks of a replica,
    whose KV is of `spec`. costs: what the router goes by."""
    config = config or a_config()
    router = Router(config, model_dir, sessions, SystemClock(), random.Random(7), costs)
    address = await router.start()
    client = AsyncClient(address, timeout_s=WAIT_S)
    rig = Rig(config, router, client, address, store, tap, spec)
    try:
        counts = {Role.PREFILL: prefill, Role.DECODE: decode, Role.AGGREGATED: aggregated}
        for role, count in counts.items():
            for index in range(count):
                engines = make_engines(role) if make_engines else None
                await rig.start(f"{role.value}-{index}", role, engines)
        async with asyncio.timeout(WAIT_S):
            await router.wait_ready()
        yield rig
        await rig.settle()
        rig.assert_clean()
    finally:
        for engine in rig.engines.values():
            if isinstance(engine, SimulatedEngine):
                engine.gate.set()
        await client.close()
        await router.stop()
        await rig.close()
