"""A deployment of real processes for tests to harm: workers, routers, a store, and a bad network.

    client ──▶ router a or b ──edge──▶ worker ──pushes, commits──▶ worker

Each of these arrows behind the routers is a proxy. Router a is told who its workers are; router b
follows router a.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from eastwest.client import AsyncClient
from eastwest.testing.audits import assert_clean
from eastwest.testing.proxy import FaultyProxy
from kv_store.embedded import EmbeddedValkey
from tests.chaos.processes import Process, router_process, worker_process
from tests.chaos.worker import HOST, WorkerOrder

WAIT_S = 120.0
LEASE_S = 4.0
STEP_S = 0.008
WORKERS = {f"{role}-{index}": role for role in ("prefill", "decode") for index in range(2)}
ROUTERS = ("a", "b")


def a_tree(store_url: str | None) -> dict[str, Any]:
    """The configuration of all processes; quick to notice, so that storms are short."""
    pool = {"kv_tokens": 4096, "step_tokens": 32, "running_max": 16}
    return {
        "router": {"heartbeat_s": 0.2, "worker_timeout_s": 2.0, "attempts_max": 5},
        "prefill": pool,
        "decode": pool,
        "kv": {"block_tokens": 8, "lease_s": LEASE_S, "transports": ["grpc"]},
        "store": {
            "enabled": store_url is not None,
            "url": store_url,
            "idle_s": 0.2,
            "timeout_s": 0.5,
            "retry_after_s": 0.2,
        },
    }


class World:
    """What a test harms. commits, pushes: proxies in front of each worker's KV service."""

    def __init__(self, model_dir: Path, logs: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.store = EmbeddedValkey(64 << 20)
        self.workers: dict[str, Process] = {}
        self.routers: dict[str, Process] = {}
        self.edges: dict[str, FaultyProxy] = {}
        self.commits: dict[str, FaultyProxy] = {}
        self.pushes: dict[str, FaultyProxy] = {}
        self.addresses: dict[str, str] = {}
        self.controls: dict[str, str] = {}
        self._model_dir = model_dir
        self._logs = logs

    @property
    def proxies(self) -> Iterator[FaultyProxy]:
        for group in (self.edges, self.commits, self.pushes):
            yield from group.values()

    async def start(self) -> None:
        """Everything, until both routers can serve."""
        await asyncio.to_thread(self.store.start)
        await asyncio.gather(*(self._first_start(name) for name in WORKERS))
        for router in ROUTERS:
            self.addresses[router] = f"{HOST}:{_free_port()}"
        for router in ROUTERS:
            self.routers[router] = router_process(router, await self._arguments(router), self._logs)
            await self.routers[router].start()
        for router in ROUTERS:
            async with self.client(router) as client:
                await client.wait_ready(WAIT_S)

    async def start_worker(self, name: str) -> None:
        """A new incarnation, at new addresses; its proxies lead there."""
        process = self.workers[name]
        await process.start()
        at = json.loads(await process.line())
        self.controls[name] = at["control"]
        self.pushes[name].lead_to(at["pushes"])
        self.commits[name].lead_to(at["control"])
        self.edges[name].lead_to(at["control"])

    def client(self, router: str, *, tenant: str = "") -> AsyncClient:
        return AsyncClient(self.addresses[router], tenant=tenant, timeout_s=WAIT_S)

    async def mend(self) -> None:
        """All faults are over: everybody is there, awake, and reachable."""
        for proxy in self.proxies:
            proxy.heal()
        for process in (*self.workers.values(), *self.routers.values()):
            process.wake()
        for name, process in self.workers.items():
            if not process.running:
                await self.start_worker(name)
        for process in self.routers.values():
            if not process.running:
                await process.start()

    async def assert_clean(self) -> None:
        """No worker holds or has leaked anything, once the last leases have run out."""
        await assert_clean(self.controls.values(), WAIT_S)

    async def close(self) -> None:
        """End all processes that were started."""
        for process in (*self.routers.values(), *self.workers.values()):
            await process.kill()
        for proxy in self.proxies:
            await proxy.close()
        await asyncio.to_thread(self.store.stop)

    async def _first_start(self, name: str) -> None:
        for proxies in (self.edges, self.pushes, self.commits):
            proxies[name] = FaultyProxy(self.rng)
        order = WorkerOrder(
            worker_id=name,
            role=WORKERS[name],
            config=a_tree(self.store.url),
            step_s=STEP_S,
            commits=await self.commits[name].start(),
            pushes=await self.pushes[name].start(),
        )
        self.workers[name] = worker_process(order, self._logs)
        await self.start_worker(name)

    async def _arguments(self, router: str) -> list[str]:
        settings = self._logs / f"{router}.yaml"
        tree = a_tree(self.store.url)
        host, port = self.addresses[router].split(":")
        tree["router"] |= {"host": host, "port": int(port)}
        tree["model"] = {"source": str(self._model_dir)}
        settings.write_text(json.dumps(tree), encoding="utf-8")
        if router != ROUTERS[0]:
            return ["--config", str(settings), f"--join={self.addresses[ROUTERS[0]]}"]
        edges = [f"--worker={name}={await edge.start()}" for name, edge in self.edges.items()]
        return ["--config", str(settings), *edges]


@asynccontextmanager
async def a_world(model_dir: Path, logs: Path, seed: int = 0) -> AsyncIterator[World]:
    """Up, and afterwards clean: with all faults over, nobody may hold or leak a block."""
    world = World(model_dir, logs, seed)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(world.close)
        await world.start()
        yield world
        await world.mend()
        await world.assert_clean()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
