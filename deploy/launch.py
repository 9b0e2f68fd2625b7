"""Brings a whole deployment up on this machine and takes it down again.

    store ──▶ Ray ──▶ router ──▶ workers ──▶ ready … ──▶ workers ──▶ router ──▶ Ray ──▶ store

Whatever fails on the way up, what was up already comes down in reverse order.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType

from deploy.hosting import worker_spec, worker_specs
from deploy.replica import pool_of
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import Unavailable
from eastwest.types import Role
from runtime.actor import Placed
from runtime.supervisor import Supervisor

Progress = Callable[[str], None]

READY_TIMEOUT_S = 600.0


class Deployment:
    """An async context manager: inside it, the router serves at `address`.

    progress: told in words what is going on whenever that takes time.
    """

    def __init__(
        self, config: Config, *, ray_address: str | None = None, progress: Progress = lambda _: None
    ) -> None:
        self.config = config
        self._ray_address = ray_address
        self._progress = progress
        self._stack = AsyncExitStack()
        self._host = "127.0.0.1"
        self._next_index: dict[Role, int] = {}
        self.address = ""

    async def __aenter__(self) -> Deployment:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress("stopping")
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        from engine.catalog import resolve_model
        from kv_store.connect import open_session_store
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
        router = Router(self.config, directory, sessions, clock, random.Random())
        self.router = router
        self.address = await router.start()
        stack.push_async_callback(router.stop)
        self.supervisor = Supervisor(router)
        stack.push_async_callback(self.supervisor.close)
        specs = worker_specs(self.config, self._host)
        self._progress(f"starting {len(specs)} workers: each loads the model")
        placed = [self.supervisor.start_worker(spec) for spec in specs]
        await asyncio.gather(*placed)
        for role in Role:
            self._next_index[role] = pool_of(self.config, role).replicas
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Until requests can be served; `Unavailable` where that takes too long."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self.router.wait_ready()
        except TimeoutError:
            raise Unavailable(f"no usable workers within {READY_TIMEOUT_S:g} s") from None

    def _start_store(self, stack: AsyncExitStack) -> None:
        """Without a URL, an embedded server is started and its URL takes the empty place."""
        store = self.config.store
        if not store.enabled or store.url is not None:
            self.embedded = None
            return
        from kv_store.embedded import EmbeddedValkey

        self._progress("starting an embedded Valkey")
        self.embedded = EmbeddedValkey(store.maxmemory_bytes)
        self.embedded.start()
        stack.callback(self.embedded.stop)
        with_url = store.model_copy(update={"url": self.embedded.url})
        self.config = self.config.model_copy(update={"store": with_url})

    def _cpus(self) -> int:
        """Logical CPUs of a local cluster: at least as many as the workers ask for, since on
        one machine more workers than cores is slow and not wrong."""
        asked = sum(
            pool_of(self.config, r).replicas * pool_of(self.config, r).threads for r in Role
        )
        # Room for one more of each role, so that a replacement can start beside what it replaces.
        return max(os.cpu_count() or 1, asked + len(Role))

    async def start_worker(self, role: Role) -> Placed:
        """One more replica of a pool; returns when it serves."""
        index = self._next_index[role]
        self._next_index[role] += 1
        return await self.supervisor.start_worker(worker_spec(self.config, role, index, self._host))

    async def stop_worker(self, worker_id: str) -> None:
        """End a replica for good."""
        await self.supervisor.stop_worker(worker_id)
