"""Sessions: what a request's prompt is when it continues a conversation, and what is kept after.

A session is begun by Chat or by Generate and goes on as what it is. Its tokens are the truth: the
next prompt appends to them, so that their KV is found again. The store has the records; copies of
those that this router has used are kept at hand, so that conversations go on while the store is
away. Without the store, a session that is not at hand counts as new, as one does whose record
has expired: clients who cannot have that say `must_exist`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from eastwest.clock import Clock
from eastwest.errors import EastWestError, InvalidArgument, NotFound, Overloaded, StoreUnavailable
from kv_store.sessions import MemorySessionStore, SessionRecord, SessionStore
from router.chat_template import ChatTemplate, continuation
from router.edge import Ask, ChatMessage, SessionRef
from router.text import Tokenizer

log = logging.getLogger(__name__)

# Encoding more than this much text takes long enough to be done beside the event loop.
_LONG_TEXT_CHARS = 1 << 14


@dataclass(frozen=True, slots=True)
class Turn:
    """One request's place in its conversation.

    prompt: everything so far and the new input. messages: the same as turns of a chat, empty for
    Generate. version: of the record that it began with, 0 for none.
    """

    prompt: tuple[int, ...]
    messages: tuple[ChatMessage, ...]
    version: int


class Conversations:
    """All sessions of this router. store: None where sessions live in this process only."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        store: SessionStore | None,
        at_hand: MemorySessionStore,
        clock: Clock,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._store = store
        self._at_hand = at_hand
        self._clock = clock
        self._busy: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def turn(self, ask: Ask, fingerprint: str) -> AsyncIterator[Turn]:
        """The request's turn; its session is held for it meanwhile.

        Raises `Overloaded` where another request holds the session, `NotFound` where it must
        exist and does not, or is of another model and cannot be told anew, `InvalidArgument`
        where its kind or the chat template refuse the input, `StoreUnavailable` where it must
        exist and nobody can say whether it does.
        """
        if ask.session is None:
            yield await self._begin(ask)
            return
        key = ask.tenant, ask.session.session_id
        if key in self._busy:
            raise Overloaded(
                f"session {key[1]!r} is in use by another request; allowed: one request of a "
                f"session at a time"
            )
        self._busy.add(key)
        try:
            record = await self._find(ask.tenant, ask.session)
            yield await (
                self._begin(ask) if record is None else self._resume(ask, record, fingerprint)
            )
        finally:
            self._busy.discard(key)

    async def keep(
        self, ask: Ask, turn: Turn, fingerprint: str, output: Sequence[int], text: str
    ) -> None:
        """Put the session back after a good ending; without a session, do nothing.

        output: the tokens of the answer `text`, without what ended it. A store that does not answer
        does not fail the request. `Overloaded` where another router has put a turn of the session
        there meanwhile: this one is not part of the conversation.
        """
        if ask.session is None:
            return
        messages = (*turn.messages, ChatMessage("assistant", text)) if turn.messages else ()
        record = SessionRecord(
            tenant=ask.tenant,
            session_id=ask.session.session_id,
            fingerprint=fingerprint,
            tokens=(*turn.prompt, *output),
            messages=tuple((m.role, m.content) for m in messages),
            updated_s=self._clock.wall_s(),
            version=turn.version + 1,
        )
        try:
            if self._store is not None:
                await self._store.put(record)
        except Overloaded:
            await self._at_hand.delete(record.tenant, record.session_id)
            raise
        except EastWestError as error:
            log.warning("session %r is not stored: %s", record.session_id, error.message)
        await self._at_hand.put(record)

    def output_before(self, token_ids: Sequence[int], text: str) -> tuple[int, ...]:
        """Tokens whose text is `text`: as many of `token_ids` as spell a beginning of it, then
        the rest encoded anew. For an output that was cut by a stop string."""
        for count in range(len(token_ids), -1, -1):
            known = self._tokenizer.decode(token_ids[:count])
            if text.startswith(known):
                rest = self._tokenizer.encode(text[len(known) :], add_special_tokens=False)
                return (*token_ids[:count], *rest)
        raise AssertionError("every text starts with the empty one")

    # Inside.

    async def _find(self, tenant: str, session: SessionRef) -> SessionRecord | None:
        at_hand = await self._at_hand.get(tenant, session.session_id)
        stored = None
        try:
            if self._store is not None:
                stored = await self._store.get(tenant, session.session_id)
        except StoreUnavailable as error:
            if at_hand is None and session.must_exist:
                raise
            log.warning("session %r: going on without the store: %s", session.session_id, error)
        if at_hand is None or (stored is not None and stored.version >= at_hand.version):
            at_hand = stored
        if at_hand is None and session.must_exist:
            raise NotFound(
                f"session {session.session_id!r} does not exist; allowed: an existing one, or "
                f"must_exist false to begin it"
            )
        return at_hand

    async def _begin(self, ask: Ask) -> Turn:
        """The first turn, or the only one."""
        if ask.messages:
            return await self._rendered(ask.messages, 0)
        return Turn(await self._tokens(ask.prompt, special=True), (), 0)

    async def _resume(self, ask: Ask, record: SessionRecord, fingerprint: str) -> Turn:
        """The next turn of a conversation."""
        if bool(ask.messages) != bool(record.messages):
            kind = "Chat" if record.messages else "Generate"
            raise InvalidArgument(
                f"session {record.session_id!r} was begun by {kind}; allowed: {kind}"
            )
        if ask.messages:
            return await self._next_turn(ask.messages, record, fingerprint)
        if record.fingerprint != fingerprint:
            raise NotFound(
                f"session {record.session_id!r} has tokens of another model and no messages to "
                f"render them from; allowed: sessions of the model that is served"
            )
        added = await self._tokens(ask.prompt, special=False)
        return Turn((*record.tokens, *added), (), record.version)

    async def _next_turn(
        self, new: tuple[ChatMessage, ...], record: SessionRecord, fingerprint: str
    ) -> Turn:
        history = tuple(ChatMessage(role, content) for role, content in record.messages)
        messages = (*history, *new)
        added = None
        if record.fingerprint == fingerprint:
            answered, answer = _plain(history[:-1]), history[-1].content
            added = continuation(self._template, answered, answer, _plain(new))
        if added is None:
            return await self._rendered(messages, record.version)
        tokens = await self._tokens(added, special=False)
        return Turn((*record.tokens, *tokens), messages, record.version)

    async def _rendered(self, messages: tuple[ChatMessage, ...], version: int) -> Turn:
        text = self._template.render(_plain(messages))
        return Turn(await self._tokens(text, special=False), messages, version)

    async def _tokens(self, prompt: str | tuple[int, ...], *, special: bool) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return prompt
        if len(prompt) < _LONG_TEXT_CHARS:
            return tuple(self._tokenizer.encode(prompt, special))
        return tuple(await asyncio.to_thread(self._tokenizer.encode, prompt, special))


def _plain(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]
