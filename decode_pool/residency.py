"""Which sessions rest on the device, since when, and which leaves first.

rest ──▶ INACTIVE ──due──▶ SPILLING ──▶ spilled (forgotten here; in the store)
           ▲  │                 │
           │  └─ activate ──▶ ACTIVE (a new turn runs; kept until it rests in turn)
           └────── deactivate / spill failed ┘
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from eastwest.blocks import BlockHash
from kv_transfer.ledger import Owner


class RestState(enum.StrEnum):
    INACTIVE = "inactive"
    ACTIVE = "active"
    SPILLING = "spilling"


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A session of one tenant."""

    salt: str
    session_id: str


@dataclass(slots=True)
class Resting:
    """Full blocks of a session, held by `owner` so that nothing evicts them before the store
    has them. due_ns: when to spill; moved on after a failure."""

    key: SessionKey
    owner: Owner
    hashes: tuple[BlockHash, ...]
    blocks: tuple[int, ...]
    due_ns: int
    state: RestState = RestState.INACTIVE


class Residency:
    """The table of resting sessions, oldest first. idle_ns: how long those that come to rest from
    now on stay here."""

    def __init__(self, idle_ns: int) -> None:
        self.idle_ns = idle_ns
        self._sessions: dict[SessionKey, Resting] = {}

    def rest(
        self,
        key: SessionKey,
        owner: Owner,
        hashes: tuple[BlockHash, ...],
        blocks: tuple[int, ...],
        now_ns: int,
    ) -> Resting | None:
        """A turn of the session has ended. Returns what rested for it before, to be released by
        the caller; None where there was nothing, or where a spill is still reading it and will
        release it at its end."""
        assert len(hashes) == len(blocks)
        former = self._sessions.pop(key, None)
        self._sessions[key] = Resting(key, owner, hashes, blocks, now_ns + self.idle_ns)
        return None if former is None or former.state is RestState.SPILLING else former

    def activate(self, key: SessionKey) -> None:
        """A new turn of the session has arrived: it is not idle any more."""
        resting = self._sessions.get(key)
        if resting is not None and resting.state is RestState.INACTIVE:
            resting.state = RestState.ACTIVE

    def deactivate(self, key: SessionKey, now_ns: int) -> None:
        """The turn ended without resting anew; what rested before is idle again."""
        resting = self._sessions.get(key)
        if resting is not None and resting.state is RestState.ACTIVE:
            resting.state = RestState.INACTIVE
            resting.due_ns = now_ns + self.idle_ns

    def hasten(self, now_ns: int) -> None:
        """Whatever rests is due now."""
        for resting in self._sessions.values():
            resting.due_ns = min(resting.due_ns, now_ns)

    def due(self, now_ns: int) -> Resting | None:
        """The session to spill now, if any."""
        for resting in self._sessions.values():
            if resting.state is RestState.INACTIVE and resting.due_ns <= now_ns:
                return resting
        return None

    def victim(self) -> Resting | None:
        """What to give up first under memory pressure: the session idle for longest; where none
        is idle, one whose next turn runs already (its sequence holds what it uses of it)."""
        candidates = [r for r in self._sessions.values() if r.state is not RestState.SPILLING]
        return min(candidates, key=lambda r: (r.state is RestState.ACTIVE, r.due_ns), default=None)

    def spilling(self, resting: Resting) -> None:
        assert resting.state is RestState.INACTIVE
        resting.state = RestState.SPILLING

    def spill_ended(self, resting: Resting, retry_ns: int | None) -> bool:
        """True where the entry is forgotten and its blocks are to be released: it is stored
        (`retry_ns` None), or a newer turn has replaced it. Else it is tried again then."""
        current = self._sessions.get(resting.key) is resting
        if current and retry_ns is not None:
            resting.state = RestState.INACTIVE
            resting.due_ns = retry_ns
            return False
        if current:
            del self._sessions[resting.key]
        return True

    def erase(self, key: SessionKey) -> Resting | None:
        """Forget a session that was deleted. Returns what rested for it, to be released by the
        caller; None where there was nothing, or where a spill releases it at its end."""
        resting = self._sessions.pop(key, None)
        return None if resting is None or resting.state is RestState.SPILLING else resting

    def drop(self, resting: Resting) -> None:
        """Forget a session unstored; the caller releases its blocks."""
        assert resting.state is not RestState.SPILLING
        del self._sessions[resting.key]

    def next_due_ns(self) -> int | None:
        """When `due` has something again, as far as is known."""
        times = [r.due_ns for r in self._sessions.values() if r.state is RestState.INACTIVE]
        return min(times, default=None)

    def __contains__(self, resting: Resting) -> bool:
        return self._sessions.get(resting.key) is resting

    def __iter__(self) -> Iterator[Resting]:
        return iter(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)
