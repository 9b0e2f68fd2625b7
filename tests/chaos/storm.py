"""Faults at seeded moments: each striker undoes one before it begins the next."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.chaos.processes import Process
from tests.chaos.world import World

PAUSE_MEAN_S = 0.5


class Storm:
    """Strikes a world until `stop`. kinds: which of `Storm.KINDS`. struck: how often each has.

    Several strikers strike at once, never the same victim.
    """

    KINDS = ("worker killed", "worker frozen", "router killed", "router frozen", "cut", "slow",
             "held", "corrupt", "store killed", "store frozen")  # fmt: skip

    def __init__(self, world: World, seed: int, kinds: tuple[str, ...], strikers: int = 2) -> None:
        self._world = world
        self._kinds = kinds
        self._victims: set[str] = set()
        self._stopping = asyncio.Event()
        self.struck: Counter[str] = Counter()
        self._tasks = [
            asyncio.create_task(self._strike(random.Random(f"{seed} {i}"))) for i in range(strikers)
        ]

    async def stop(self) -> None:
        """No more strikes; those under way are undone. Raises what went wrong with them."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def _strike(self, rng: random.Random) -> None:
        deck: list[str] = []
        while await self._pause(rng.expovariate(1 / PAUSE_MEAN_S)):
            # Each kind in turn, in a new order each time.
            deck = deck or rng.sample(self._kinds, len(self._kinds))
            kind, for_s = deck.pop(), rng.uniform(0.1, 4.0)
            victim, strike = self._choose(kind, rng)
            if victim in self._victims:
                continue
            self._victims.add(victim)
            self.struck[kind] += 1
            await strike(for_s)
            self._victims.discard(victim)

    def _choose(
        self, kind: str, rng: random.Random
    ) -> tuple[str, Callable[[float], Awaitable[None]]]:
        world = self._world
        what, _, how = kind.partition(" ")
        if what in ("worker", "router"):
            processes = world.workers if what == "worker" else world.routers
            name = rng.choice(sorted(processes))
            start = (lambda: world.start_worker(name)) if what == "worker" else (
                processes[name].start
            )  # fmt: skip
            if how == "killed":
                return name, lambda for_s: self._kill(processes[name], start, for_s)
            return name, lambda for_s: self._freeze(processes[name], for_s)
        if what == "store":
            return "store", self._kill_store if how == "killed" else self._freeze_store
        return self._choose_link(kind, rng)

    def _choose_link(
        self, kind: str, rng: random.Random
    ) -> tuple[str, Callable[[float], Awaitable[None]]]:
        # KV, commits and their receipts are checked; control streams leave that to TCP, or TLS.
        world = self._world
        groups = {"pushes": world.pushes, "commits": world.commits, "edges": world.edges}
        group = rng.choice(sorted(groups.keys() - ({"edges"} if kind == "corrupt" else set())))
        name = rng.choice(sorted(groups[group]))
        proxy = groups[group][name]

        async def strike(for_s: float) -> None:
            match kind:
                case "cut":
                    proxy.cut()
                    proxy.refuse = for_s > 2.0
                case "slow":
                    proxy.delay_s = for_s / 40
                case "held":
                    proxy.hold()
                case "corrupt":
                    proxy.corrupt = 0.3
            await self._pause(for_s)
            proxy.heal()

        return f"{group} {name}", strike

    async def _kill(
        self, process: Process, start: Callable[[], Awaitable[None]], for_s: float
    ) -> None:
        await process.kill()
        await self._pause(for_s / 4)
        await start()

    async def _freeze(self, process: Process, for_s: float) -> None:
        process.freeze()
        await self._pause(for_s)
        process.wake()

    async def _kill_store(self, for_s: float) -> None:
        await asyncio.to_thread(self._world.store.kill)
        await self._pause(for_s)
        await asyncio.to_thread(self._world.store.start)

    async def _freeze_store(self, for_s: float) -> None:
        pid = self._world.store.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await self._pause(for_s)
        os.kill(pid, signal.SIGCONT)

    async def _pause(self, for_s: float) -> bool:
        """Whether the storm goes on after so long."""
        try:
            async with asyncio.timeout(for_s):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False
