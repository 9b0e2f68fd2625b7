"""`eastwest router`: one more router over the workers of a deployment that runs.

Each router has streams of its own to the workers, which arbitrate between routers; sessions meet in
the store. Which workers there are it asks of another router, again and again, or it is told.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from rich.console import Console

from deploy.launch import in_time
from eastwest.answers import ServerInfo
from eastwest.client import AsyncClient
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import ConfigError, EastWestError
from eastwest.garbage import settle

log = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 5.0


class Workers(Protocol):
    """What a follower keeps in line: `router.server.Router`."""

    def add_worker(self, worker_id: str, address: str) -> None:
        """Keep a stream to the worker at ``host:port``."""

    async def remove_worker(self, worker_id: str) -> None:
        """Forget a worker. Idempotent."""


class Follower:
    """Keeps the workers of `own` those that the router at `address` has.

    While that one does not answer, or knows of no worker itself, the known ones stay: losing a
    router costs the others nothing.
    """

    def __init__(
        self, own: Workers, address: str, period_s: float, progress: Callable[[str], None]
    ) -> None:
        self._own = own
        self._address = address
        self._period_s = period_s
        self._progress = progress
        self._known: dict[str, str] = {}
        self._trouble = ""

    async def run(self) -> None:
        """Ends by being cancelled."""
        async with AsyncClient(self._address, timeout_s=_ANSWER_TIMEOUT_S) as client:
            while True:
                try:
                    info = await client.server_info()
                except EastWestError as error:
                    self._tell(f"{self._address} does not say which workers there are: {error}")
                else:
                    await self.heed(info)
                await asyncio.sleep(self._period_s)

    async def heed(self, info: ServerInfo) -> None:
        """Follow one answer."""
        there = {worker.worker_id: worker.address for worker in info.workers}
        if not there:
            self._tell(f"{self._address} knows of no worker")
            return
        self._tell("")
        for worker_id, address in list(self._known.items()):
            if there.get(worker_id) != address:
                del self._known[worker_id]
                await self._own.remove_worker(worker_id)
        for worker_id, address in there.items():
            if worker_id not in self._known:
                self._known[worker_id] = address
                self._own.add_worker(worker_id, address)

    def _tell(self, trouble: str) -> None:
        """Each trouble once."""
        if trouble and trouble != self._trouble:
            self._progress(trouble)
            log.warning("%s", trouble)
        self._trouble = trouble


def worker_addresses(named: Sequence[str]) -> dict[str, str]:
    """Addresses by name, of ``name=host:port``. Raises `ConfigError`."""
    found = {}
    for text in named:
        name, _, address = text.partition("=")
        if not name or ":" not in address:
            raise ConfigError(f"--worker {text!r} is not understood; allowed: name=host:port")
        found[name] = address
    return found


async def route(
    config: Config, join: str | None, workers: Mapping[str, str], console: Console
) -> None:
    """Serve until cancelled. join: a router whose workers are followed. workers: addresses of
    others, by name. `ConfigError` where there is nobody to serve, or sessions would not be
    shared."""
    from engine.catalog import resolve_model
    from kv_store.connect import open_session_store
    from router.server import Router

    if join is None and not workers:
        raise ConfigError("no workers; allowed: --join with a router's address, --worker, or both")
    if config.store.enabled and config.store.url is None:
        raise ConfigError(
            "store.url is not set; allowed: the URL of the store that the deployment uses, where "
            "sessions of all routers are, or store.enabled false"
        )

    def progress(text: str) -> None:
        console.print(f"… {text}", markup=False)

    directory = await asyncio.to_thread(resolve_model, config.model, progress)
    async with AsyncExitStack() as stack:
        clock, sessions = SystemClock(), None
        if config.store.enabled and config.store.url is not None:
            sessions = open_session_store(config.store, config.store.url, clock)
            stack.push_async_callback(sessions.close)
        router = Router(config, directory, sessions, clock, random.Random())
        address = await router.start()
        stack.push_async_callback(router.stop)
        for worker_id, worker_address in workers.items():
            router.add_worker(worker_id, worker_address)

        async def announce() -> None:
            await in_time(router.wait_ready())
            settle()
            console.print(f"{router.router_id} serves at {address}", markup=False)
            if router.http_address is not None:
                console.print(f"HTTP at http://{router.http_address}/v1", markup=False)

        work: list[Coroutine[None, None, object]] = [announce(), asyncio.Event().wait()]
        if join is not None:
            work.append(Follower(router, join, config.router.heartbeat_s, progress).run())
        await _first_error(work)


async def _first_error(work: Iterable[Coroutine[None, None, object]]) -> None:
    """All of it, at once; where some fails, the rest is cancelled."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for each in work:
                tasks.create_task(each)
    except* EastWestError as group:
        raise group.exceptions[0] from None
