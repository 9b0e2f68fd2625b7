"""The records of sessions as one router sees them: those in the store, copies of those that it has
used at hand, so that conversations go on while the store is away, and which of them are in use.

Without the store, a session that is not at hand counts as new, as one does whose record has
expired.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from eastwest.errors import EastWestError, Overloaded, StoreUnavailable
from kv_store.sessions import MemorySessionStore, SessionRecord, SessionStore, SessionSummary

log = logging.getLogger(__name__)


class SessionBook:
    """store: None where sessions live in this process only."""

    def __init__(self, store: SessionStore | None, at_hand: MemorySessionStore) -> None:
        self._store = store
        self._at_hand = at_hand
        self._busy: set[tuple[str, str]] = set()

    @contextmanager
    def hold(self, tenant: str, session_id: str) -> Iterator[None]:
        """Nobody else's meanwhile; `Overloaded` where it is somebody else's now."""
        key = tenant, session_id
        if key in self._busy:
            raise Overloaded(
                f"session {session_id!r} is in use by another request; allowed: one request of a "
                f"session at a time"
            )
        self._busy.add(key)
        try:
            yield
        finally:
            self._busy.discard(key)

    async def find(
        self, tenant: str, session_id: str, *, certain: bool = False
    ) -> SessionRecord | None:
        """The latest record, which may say that the session was deleted. certain: raise
        `StoreUnavailable` where there may be one and nobody can say."""
        at_hand = await self._at_hand.get(tenant, session_id)
        stored = None
        try:
            if self._store is not None:
                stored = await self._store.get(tenant, session_id)
        except StoreUnavailable as error:
            if at_hand is None and certain:
                raise
            log.warning("session %r: going on without the store: %s", session_id, error)
        if at_hand is None or (stored is not None and stored.version >= at_hand.version):
            return stored
        return at_hand

    async def put(self, record: SessionRecord, *, certain: bool = False) -> None:
        """Keep a record. `Overloaded` where another router has put a newer one meanwhile. certain:
        raise, too, where the store does not take it, and it is kept nowhere then."""
        try:
            if self._store is not None:
                await self._store.put(record)
        except Overloaded:
            await self._at_hand.delete(record.tenant, record.session_id)
            raise
        except EastWestError as error:
            if certain:
                raise
            log.warning("session %r is not stored: %s", record.session_id, error.message)
        await self._at_hand.put(record)

    async def common_tokens(self, record: SessionRecord) -> int:
        """How many of its leading tokens other sessions of the tenant have, as far as is known."""
        return await (self._store or self._at_hand).common_tokens(record)

    async def page(self, tenant: str, after: str, limit: int) -> list[SessionSummary]:
        """The tenant's sessions in order of their ids: the first `limit` behind `after`. Those that
        only another router has at hand are not among them."""
        return await (self._store or self._at_hand).page(tenant, after, limit)
