"""Carries resting sessions to the offline store: after an idle time, or at once under pressure.

A spilled session's blocks stay on the device as clean cache that the pool may evict. Without a
store that answers, a session keeps resting; only memory pressure lets it go unstored, which
costs recomputation and never a wrong answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from decode_pool.residency import Residency, Resting, RestState, SessionKey
from eastwest.blocks import BlockHash, block_hashes, hash_seed
from eastwest.clock import Clock, ns, seconds
from eastwest.errors import StoreUnavailable
from eastwest.messages import Erase
from eastwest.ports import BlockStore, ReplicaKV
from runtime.holdings import Holdings
from runtime.stored_prefix import batch_blocks

log = logging.getLogger(__name__)


# Deleted sessions that the store has yet, at most; beyond it, the first ones expire there.
_ERASING_MAX = 4096


class Spiller:
    """One session at a time, oldest first."""

    def __init__(
        self,
        *,
        fingerprint: str,
        store: BlockStore | None,
        kv: ReplicaKV,
        holdings: Holdings,
        residency: Residency,
        retry_s: float,
        clock: Clock,
    ) -> None:
        self._fingerprint = fingerprint
        self._store = store
        self._kv = kv
        self._holdings = holdings
        self._residency = residency
        self._idle_ns = residency.idle_ns
        self._retry_ns = ns(retry_s)
        self._clock = clock
        self._wake = asyncio.Event()
        self._one = asyncio.Lock()
        self._erasing: deque[Sequence[BlockHash]] = deque(maxlen=_ERASING_MAX)
        self._erase_ns = 0  # not before
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

    def erase(self, command: Erase) -> None:
        """Keep nothing of a session that was deleted: at once in memory, and then in the store,
        behind what is being written to it."""
        size, seed = self._kv.block_tokens, hash_seed(self._fingerprint, command.salt)
        hashes = block_hashes(command.tokens, size, seed)[command.keep_tokens // size :]
        resting = self._residency.erase(SessionKey(command.salt, command.session_id))
        if resting is not None:
            self._holdings.release(resting.owner)
        self._holdings.pool.forget(hashes)
        if self._store is not None:
            self._erasing.append(hashes)
        self.wake()

    def spillable_blocks(self) -> int:
        """Blocks that only idle sessions hold: there is room where they are once they spill."""
        idle = [r for r in self._residency if r.state is RestState.INACTIVE]
        refcounts = self._holdings.pool.refcounts() if idle else {}
        return sum(refcounts[block] == 1 for resting in idle for block in resting.blocks)

    async def run(self) -> None:
        """Spill what falls due; ends by being cancelled."""
        if self._store is None:
            return
        while True:
            self._wake.clear()
            if self._erasing and self._erase_ns <= self._clock.now_ns():
                await self._erase()
                continue
            resting = self._residency.due(self._clock.now_ns())
            if resting is not None:
                await self.spill(resting)
                continue
            dues = [self._residency.next_due_ns(), self._erase_ns if self._erasing else None]
            due = min((due for due in dues if due is not None), default=None)
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

    async def _erase(self) -> None:
        """The next of `_erasing`, or try again later."""
        assert self._store is not None
        hashes = self._erasing.popleft()
        try:
            async with self._one:
                await self._store.erase(hashes)
        except StoreUnavailable as error:
            log.warning("a deleted session is in the store yet: %s", error.message)
            self._erasing.appendleft(hashes)
            self._erase_ns = self._clock.now_ns() + self._retry_ns
            return
        self._holdings.note_stored((), hashes)

    async def _write(self, resting: Resting) -> None:
        if self._store is None:
            raise StoreUnavailable("no offline store is configured")
        batch = batch_blocks(self._kv)
        for start in range(0, len(resting.blocks), batch):
            part = slice(start, start + batch)
            payloads = await self._kv.read(resting.blocks[part])
            await self._store.write(list(zip(resting.hashes[part], payloads, strict=True)))
            self._holdings.note_stored(resting.hashes[part])
