"""Servers that are more than one: a Cluster, and a master whom Sentinels watch."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from eastwest.errors import StoreUnavailable
from kv_store.embedded import _binary

START_S = 60.0
SLOTS = 16384


class Server:
    """One process of valkey-server on a port of its own."""

    def __init__(self, port: int, directory: Path, options: Sequence[str]) -> None:
        self.port = port
        directory.mkdir()
        command = [str(_binary()), *options, "--port", str(port), "--dir", str(directory)]
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log)

    def client(self) -> Redis:
        return Redis(port=self.port, socket_timeout=START_S)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, nor at those of a cluster's bus, which are 10,000 above."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                bus.bind(("127.0.0.1", port - 10_000 if port > 45_000 else port + 10_000))
            except OSError:
                continue
        found.append(port if port <= 45_000 else port - 10_000)
    return found


@asynccontextmanager
async def a_cluster(directory: Path, count: int = 3) -> AsyncIterator[list[Server]]:
    """Masters with equal shares of the slots."""
    quiet = ["--save", "", "--appendonly", "no"]
    options = [*quiet, "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
    async with AsyncExitStack() as stack:
        servers = []
        for port in free_ports(count):
            server = Server(port, directory / str(port), options)
            stack.callback(server.kill)
            servers.append(server)
        async with AsyncExitStack() as clients:
            admins = [await clients.enter_async_context(server.client()) for server in servers]
            for number, admin in enumerate(admins):
                await until(admin.ping)
                first, last = SLOTS * number // count, SLOTS * (number + 1) // count - 1
                await say(admin, "CLUSTER", "ADDSLOTSRANGE", first, last)
                await say(admin, "CLUSTER", "MEET", "127.0.0.1", servers[0].port)
            for admin in admins:
                await until(partial(_knows_all, admin, count))
        yield servers


@asynccontextmanager
async def a_watched_master(directory: Path) -> AsyncIterator[tuple[Server, Server, Server]]:
    """A master, its replica, and a Sentinel who calls them "kv"."""
    main, second, watcher = free_ports(3)
    async with AsyncExitStack() as stack:
        quiet = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        master = Server(main, directory / "master", quiet)
        stack.callback(master.kill)
        follow = ["--replicaof", "127.0.0.1", str(main)]
        replica = Server(second, directory / "replica", [*quiet, *follow])
        stack.callback(replica.kill)
        async with master.client() as one, replica.client() as two:
            await until(one.ping)

            async def follows() -> bool:
                return bool((await two.info("replication"))["master_link_status"] == "up")

            await until(follows)
        config = directory / "sentinel.conf"
        config.write_text(
            f"sentinel monitor kv 127.0.0.1 {main} 1\n"
            "sentinel down-after-milliseconds kv 500\nsentinel failover-timeout kv 1000\n"
        )
        sentinel = Server(watcher, directory / "sentinel", [str(config), "--sentinel"])
        stack.callback(sentinel.kill)
        async with sentinel.client() as three:
            await until(three.ping)
            # It looks at everything every 10 s where nothing is wrong.
            await say(three, "SENTINEL", "DEBUG", "INFO-PERIOD", 200, "PING-PERIOD", 100)
            await say(three, "SENTINEL", "DEBUG", "PUBLISH-PERIOD", 200)

            async def watched() -> bool:
                told = str(await say(three, "SENTINEL", "REPLICAS", "kv"))
                return re.search(r"master-link-status\W+b?\W*ok", told) is not None

            await until(watched)
        yield master, replica, sentinel


async def say(admin: Redis, *words: object) -> Any:
    """The reply to any command."""
    return await admin.execute_command(*words)  # type: ignore[no-untyped-call]


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    """Asked again and again; a server that does not answer yet is asked again, too."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                if await holds():
                    return
            except (OSError, RedisError, StoreUnavailable):
                pass
            await asyncio.sleep(0.05)


async def _knows_all(admin: Redis, count: int) -> bool:
    info = await say(admin, "CLUSTER", "INFO")
    well = "cluster_state:ok" in str(info) or "'cluster_state': 'ok'" in str(info)
    slots = await say(admin, "CLUSTER", "SLOTS")
    # Those of one node are one range here; each is a start, an end and who has them.
    all_of_them = sum(last + 1 - first for first, last, *_ in slots) == SLOTS
    return well and len(slots) == count and all_of_them
