"""Brings a whole deployment up on this machine and takes it down again.

    store ──▶ Ray ──▶ router ──▶ workers ──▶ ready … ──▶ workers ──▶ router ──▶ Ray ──▶ store

Whatever fails on the way up, what was up already comes down in reverse order.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TypeVar

from deploy.hosting import worker_spec, worker_specs
from deploy.replica import pool_of
from deploy.serving_costs import serving_costs
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import Unavailable
from eastwest.garbage import settle
from eastwest.ports import ServingCosts
from eastwest.types import Role
from runtime.actor import Placed
from runtime.supervisor import Supervisor

Progress = Callable[[str], None]

READY_TIMEOUT_S = 600.0

T = TypeVar("T")


class Deployment:
    """Between `start` and `stop`, or as an async context manager, the router serves at `address`,
    and over HTTP at `http_address` where that is on.

    progress: told in words what is going on whenever that takes time. costs: what the router goes
    by, where not by the planner's figures.
    """

    def __init__(
        self,
        config: Config,
        *,
        ray_address: str | None = None,
        progress: Progress = lambda _: None,
        costs: ServingCosts | None = None,
    ) -> None:
        self.config = config
        self._ray_address = ray_address
        self._progress = progress
        self._costs = costs
        self._stack = AsyncExitStack()
        self._host = "127.0.0.1"
        self._next_index: dict[Role, int] = {}
        self.address = ""
        self.http_address: str | None = None

    async def start(self) -> None:
        """Bring everything up; where that fails, nothing stays up."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Take everything down. Idempotent."""
        self._progress("stopping")
        await self._stack.aclose()

    async def __aenter__(self) -> Deployment:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _start(self, stack: AsyncExitStack) -> None:
        from engine.catalog import resolve_model
        from kv_store.connect import open_session_store
        from kv_store.sweeper import sweeping
        from router.server import Router
        from runtime.cluster import Cluster

        self._progress("looking for the model")
        directory = await asyncio.to_thread(resolve_model, self.config.model, self._progress)
        self._start_store(stack)
        self._progress("starting Ray")
        cluster = Cluster(self._ray_address, self._cpus())
        stack.callback(cluster.close)
        clock = SystemClock()
        sessions = None
        if self.config.store.enabled and self.config.store.url is not None:
            sessions = open_session_store(self.config.store, self.config.store.url, clock)
            stack.push_async_callback(sessions.close)
            await stack.enter_async_context(sweeping(self.config.store, self.config.store.url))
        costs = self._costs or serving_costs(self.config, directory)
        router = Router(self.config, directory, sessions, clock, random.Random(), costs)
        self.router = router
        self.address = await router.start()
        self.http_address = router.http_address
        stack.push_async_callback(router.stop)
        self.supervisor = Supervisor(router)
        stack.push_async_callback(self.supervisor.close)
        specs = worker_specs(self.config, self._host)
        self._progress(f"starting {len(specs)} workers: each loads the model")
        placed = [self.supervisor.start_worker(spec) for spec in specs]
        await in_time(asyncio.gather(*placed))
        for role in Role:
            self._next_index[role] = pool_of(self.config, role).replicas
        await self.wait_ready()
        settle()

    async def wait_ready(self) -> None:
        """Until requests can be served; `Unavailable` where that takes too long."""
        await in_time(self.router.wait_ready())

    def _start_store(self, stack: AsyncExitStack) -> None:
        """Without a URL, an embedded server is started and its URL takes the empty place."""
        store = self.config.store
        if not store.enabled or store.url is not None:
            return
        from kv_store.embedded import EmbeddedValkey

        self._progress("starting an embedded Valkey")
        embedded = EmbeddedValkey(store.maxmemory_bytes)
        embedded.start()
        stack.callback(embedded.stop)
        budget = store.budget_bytes or store.maxmemory_bytes * 9 // 10
        with_url = store.model_copy(update={"url": embedded.url, "budget_bytes": budget})
        self.config = self.config.model_copy(update={"store": with_url})

    def _cpus(self) -> int:
        """Logical CPUs of a local cluster: at least as many as the workers ask for, since on
        one machine more workers than cores is slow and not wrong."""
        pools = [pool_of(self.config, role) for role in Role]
        # Room for one more of each role, so that a replacement can start beside what it replaces.
        asked = sum((p.replicas + 1) * p.layout.layout().world_size * p.threads for p in pools)
        return max(os.cpu_count() or 1, asked)

    async def start_worker(self, role: Role) -> Placed:
        """One more replica of a pool; returns when it serves, `Unavailable` where it never does."""
        index = self._next_index[role]
        self._next_index[role] += 1
        spec = worker_spec(self.config, role, index, self._host)
        return await in_time(self.supervisor.start_worker(spec))

    async def drain_worker(self, worker_id: str) -> None:
        """Let a replica leave without a failed request; returns when it is gone."""
        await self.supervisor.drain_worker(worker_id, self.config.router.drain_timeout_s)

    async def stop_worker(self, worker_id: str) -> None:
        """End a replica at once and for good; what it serves goes on elsewhere."""
        await self.supervisor.stop_worker(worker_id)


async def in_time(workers: Awaitable[T]) -> T:
    """What is waited for, unless it takes longer than any worker should need."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            return await workers
    except TimeoutError:
        raise Unavailable(f"no usable workers within {READY_TIMEOUT_S:g} s") from None
