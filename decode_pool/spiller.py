"""Carries resting sessions to the offline store: after an idle time, or at once under pressure.

A spilled session's blocks stay on the device as clean cache that the pool may evict. Without a
store that answers, a session keeps resting; only memory pressure lets it go unstored, which
costs recomputation and never a wrong answer.
"""

from __future__ import annotations

import asyncio
import logging

from decode_pool.residency import Residency, Resting, RestState
from eastwest.clock import Clock, ns, seconds
from eastwest.errors import StoreUnavailable
from eastwest.ports import BlockStore, ReplicaKV
from runtime.holdings import Holdings
from runtime.stored_prefix import batch_blocks

log = logging.getLogger(__name__)


class Spiller:
    """One session at a time, oldest first."""

    def __init__(
        self,
        *,
        store: BlockStore | None,
        kv: ReplicaKV,
        holdings: Holdings,
        residency: Residency,
        retry_s: float,
        clock: Clock,
    ) -> None:
        self._store = store
        self._kv = kv
        self._holdings = holdings
        self._residency = residency
        self._idle_ns = residency.idle_ns
        self._retry_ns = ns(retry_s)
        self._clock = clock
        self._wake = asyncio.Event()
        self._one = asyncio.Lock()
        self.spilled_blocks = 0
        self.spilled_sessions = 0

    def wake(self) -> None:
        """The residency has changed."""
        self._wake.set()

    def hasten(self, *, hasten: bool) -> None:
        """Store what rests, and comes to rest, at once; or after the idle time again."""
        self._residency.idle_ns = 0 if hasten else self._idle_ns
        if hasten:
            self._residency.hasten(self._clock.now_ns())
        self.wake()

    async def empty(self) -> int:
        """Try to store every session that rests, and wait for those being stored. How many the
        store did not take; they go on resting."""
        for resting in list(self._residency):
            if self._store is not None and resting.state is RestState.INACTIVE:
                await self.spill(resting)
        async with self._one:
            return len(self._residency)

    async def run(self) -> None:
        """Spill what falls due; ends by being cancelled."""
        if self._store is None:
            return
        while True:
            self._wake.clear()
            resting = self._residency.due(self._clock.now_ns())
            if resting is not None:
                await self.spill(resting)
                continue
            due = self._residency.next_due_ns()
            delay = None if due is None else max(0.0, seconds(due - self._clock.now_ns()))
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def spill(self, resting: Resting) -> bool:
        """Store the session's blocks, then let go of them; False where the store refuses."""
        self._residency.spilling(resting)
        retry_ns: int | None = self._clock.now_ns()
        try:
            async with self._one:
                await self._write(resting)
            retry_ns = None
            self.spilled_blocks += len(resting.blocks)
            self.spilled_sessions += 1
        except StoreUnavailable as error:
            log.warning("session keeps resting, not stored: %s", error.message)
            retry_ns = self._clock.now_ns() + self._retry_ns
        finally:
            if self._residency.spill_ended(resting, retry_ns):
                self._holdings.release(resting.owner)
        return retry_ns is None

    async def make_room(self) -> bool:
        """Let go of one session's blocks, stored if it is idle; False if there is none."""
        victim = self._residency.victim()
        if victim is None:
            return False
        idle = victim.state is RestState.INACTIVE
        stored = idle and self._store is not None and await self.spill(victim)
        if not stored and victim in self._residency:
            log.warning("session dropped unstored under memory pressure")
            self._residency.drop(victim)
            self._holdings.release(victim.owner)
        return True

    async def _write(self, resting: Resting) -> None:
        if self._store is None:
            raise StoreUnavailable("no offline store is configured")
        batch = batch_blocks(self._kv)
        for start in range(0, len(resting.blocks), batch):
            part = slice(start, start + batch)
            payloads = await self._kv.read(resting.blocks[part])
            await self._store.write(list(zip(resting.hashes[part], payloads, strict=True)))
            self._holdings.note_stored(resting.hashes[part])
