"""Sessions: what a request's prompt is when it continues a conversation, and what is kept after.

A session is begun by Chat or by Generate and goes on as what it is. Its tokens are the truth: the
next prompt appends to them, so that their KV is found again. Clients who cannot have that a session
counts as new whose record is not to be had say `must_exist`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from eastwest.clock import Clock
from eastwest.errors import InvalidArgument, NotFound, Overloaded
from kv_store.sessions import SessionRecord
from router.chat_template import ChatTemplate, continuation
from router.edge import Ask, ChatMessage, SessionRef
from router.erasing import Erase
from router.session_book import SessionBook
from router.text import Tokenizer

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
    """The turns of all sessions of this router. erase: what is left of a deleted one."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        book: SessionBook,
        erase: Erase,
        clock: Clock,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._book = book
        self._erase = erase
        self._clock = clock

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
        with self._book.hold(ask.tenant, ask.session.session_id):
            record = await self._find(ask.tenant, ask.session)
            if record is None or record.deleted:
                turn = await self._begin(ask)
                # A session that takes the place of a deleted one is later than that.
                yield turn if record is None else replace(turn, version=record.version)
            else:
                yield await self._resume(ask, record, fingerprint)

    async def keep(
        self, ask: Ask, turn: Turn, fingerprint: str, output: Sequence[int], text: str
    ) -> None:
        """Put the session back after a good ending; without a session, do nothing.

        output: the tokens of the answer `text`, without what ended it. A store that does not answer
        does not fail the request. `Overloaded` where another router has put a turn of the session
        there meanwhile, or has deleted it: this one is not part of the conversation.
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
            await self._book.put(record)
        except Overloaded:
            latest = await self._book.find(record.tenant, record.session_id)
            if latest is not None and latest.deleted:
                await self._erase(record)
            raise

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
        certain = session.must_exist
        record = await self._book.find(tenant, session.session_id, certain=certain)
        if session.must_exist and (record is None or record.deleted):
            raise NotFound(
                f"session {session.session_id!r} does not exist; allowed: an existing one, or "
                f"must_exist false to begin it"
            )
        return record

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
