"""Conversations over several requests, with a store that works, is away, or was never there."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from eastwest import AsyncClient
from eastwest.clock import SystemClock
from eastwest.errors import InvalidArgument, NotFound, Overloaded, StoreUnavailable
from eastwest.messages import Reserve
from kv_store.sessions import MemorySessionStore, SessionRecord, SessionSummary
from tests.byte_tokenizer import CHAT_TEMPLATE, END, START, ids_of
from tests.integration.deployment import Deployment, a_deployment, says


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def turn(role: str, content: str) -> tuple[int, ...]:
    """One rendered message."""
    return (START, *ids_of(f"{role}\n{content}"), END, *ids_of("\n"))


ANSWERS = (START, *ids_of("assistant\n"))  # what a prompt ends with


def a_store() -> MemorySessionStore:
    return MemorySessionStore(100, 3600.0, SystemClock())


class AwayStore:
    """A store that can be cut off. `puts` are the records that arrived."""

    def __init__(self) -> None:
        self._inner = a_store()
        self.away = False

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None:
        self._check()
        return await self._inner.get(tenant, session_id)

    async def put(self, record: SessionRecord) -> None:
        self._check()
        await self._inner.put(record)

    async def page(self, tenant: str, after: str, limit: int) -> list[SessionSummary]:
        self._check()
        return await self._inner.page(tenant, after, limit)

    async def common_tokens(self, record: SessionRecord) -> int:
        self._check()
        return await self._inner.common_tokens(record)

    async def delete(self, tenant: str, session_id: str) -> None:
        self._check()
        await self._inner.delete(tenant, session_id)

    async def close(self) -> None:
        await self._inner.close()

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("the store is cut off")


async def prompts(d: Deployment, count: int) -> list[tuple[int, ...]]:
    return [command.prompt for command in await d.decode.received(Reserve, count)]


async def test_a_chat_goes_on_from_the_tokens_of_the_former_turns() -> None:
    async with a_deployment(says("hello"), store=a_store()) as d:
        first = await d.client.chat(user("hi"), session="s")
        await d.client.chat(user("more"), session="s")
        [reserve, _] = await d.decode.received(Reserve, 2)
        before, after = await prompts(d, 2)
    assert reserve.session_id == "s"
    assert before == (*turn("user", "hi"), *ANSWERS)
    assert first.usage.prompt_tokens == len(before)
    assert after == (
        *turn("user", "hi"),
        *turn("assistant", "hello"),
        *turn("user", "more"),
        *ANSWERS,
    )


async def test_another_router_goes_on_with_a_stored_session() -> None:
    store = a_store()
    async with a_deployment(says("hello"), store=store) as d:
        await d.client.chat(user("hi"), session="s")
    async with a_deployment(says("hello"), store=store) as d:
        await d.client.chat(user("more"), session="s", must_exist=True)
        [after] = await prompts(d, 1)
    assert after[: len(turn("user", "hi"))] == turn("user", "hi")


async def test_of_two_turns_at_two_routers_one_is_told_that_it_is_no_part_of_the_session() -> None:
    store = a_store()
    async with (
        a_deployment(says("hello"), store=store) as slow,
        a_deployment(says("world"), store=store) as quick,
    ):
        await quick.client.generate("a", session="s")
        slow.decode.stepping.hold()
        async with slow.client.generate("b", session="s") as generation:
            await anext(generation)
            await quick.client.generate("c", session="s")
            slow.decode.stepping.open()
            with pytest.raises(Overloaded, match="in use by another request") as caught:
                await generation
        assert caught.value.status.retriable
        await slow.client.generate("d", session="s", must_exist=True)
        assert (await prompts(slow, 2))[-1] == ids_of("aworldcworldd")


async def test_a_generate_session_appends_text_and_tokens() -> None:
    async with a_deployment(says("hello"), store=a_store()) as d:
        await d.client.generate("a", session="s")
        await d.client.generate("b", session="s")
        await d.client.generate((7, 8), session="s", max_tokens=2)
        await d.client.generate("c", session="s")
        seen = await prompts(d, 4)
    assert seen == [
        ids_of("a"),
        ids_of("ahellob"),
        (*ids_of("ahellobhello"), 7, 8),
        (*ids_of("ahellobhello"), 7, 8, *ids_of("hec")),
    ]


async def test_what_a_stop_string_cut_is_not_in_the_next_prompt() -> None:
    async with a_deployment(says("one two three"), store=a_store()) as d:
        await d.client.generate("a", session="s", stop=" two")
        await d.client.generate("b", session="s")
        seen = await prompts(d, 2)
    assert seen[1] == ids_of("aoneb")


async def test_sessions_of_tenants_do_not_meet() -> None:
    async with a_deployment(says("hello"), store=a_store()) as d:
        await d.client.generate("a", session="s")
        async with AsyncClient(d.address, tenant="other") as other:
            with pytest.raises(NotFound, match="'s' does not exist"):
                await other.generate("b", session="s", must_exist=True)


async def test_a_session_is_what_it_was_begun_as() -> None:
    async with a_deployment(says("hello"), store=a_store()) as d:
        await d.client.chat(user("hi"), session="chat")
        await d.client.generate("hi", session="text")
        with pytest.raises(InvalidArgument, match="begun by Chat"):
            await d.client.generate("more", session="chat")
        with pytest.raises(InvalidArgument, match="begun by Generate"):
            await d.client.chat(user("more"), session="text")


async def test_one_request_of_a_session_runs_at_a_time() -> None:
    async with a_deployment(says("hello"), store=a_store()) as d:
        d.decode.stepping.hold()
        running = d.client.generate("a", session="s")
        await anext(running)
        with pytest.raises(Overloaded, match="'s' is in use"):
            await d.client.generate("b", session="s")
        d.decode.stepping.open()
        await running
        await d.client.generate("b", session="s")


async def test_a_request_that_fails_leaves_its_session_as_it_was() -> None:
    async with a_deployment(says("hello"), store=a_store()) as d:
        await d.client.generate("a", session="s")
        d.decode.stepping.hold()
        async with d.client.generate("lost", session="s") as generation:
            await anext(generation)
        # Only then is it sure that no step ends it well after all.
        await d.decode.freed()
        d.decode.stepping.open()
        await _until_free(d, "s")
        seen = await prompts(d, 3)
    assert seen[-1] == ids_of("ahellob")


async def _until_free(d: Deployment, session: str) -> None:
    """Continue the session as soon as the router has noticed that its client is gone."""
    async with asyncio.timeout(60):
        while True:
            try:
                await d.client.generate("b", session=session)
            except Overloaded:
                continue
            return


async def test_a_chat_of_another_model_is_told_anew_but_tokens_cannot_be() -> None:
    store = a_store()
    clock = SystemClock()
    record = SessionRecord(
        tenant="",
        session_id="chat",
        fingerprint="of another model",
        tokens=(1, 2, 3),
        messages=(("user", "hi"), ("assistant", "hello")),
        updated_s=clock.wall_s(),
        version=3,
    )
    await store.put(record)
    await store.put(replace(record, session_id="text", messages=()))
    async with a_deployment(says("hello"), store=store) as d:
        await d.client.chat(user("more"), session="chat")
        with pytest.raises(NotFound, match="another model"):
            await d.client.generate("more", session="text")
        [prompt] = await prompts(d, 1)
    assert prompt == (
        *turn("user", "hi"),
        *turn("assistant", "hello"),
        *turn("user", "more"),
        *ANSWERS,
    )
    kept = await store.get("", "chat")
    assert kept is not None
    assert kept.version == 4


async def test_a_template_that_rewrites_history_has_the_whole_prompt_rendered_again() -> None:
    # It counts the messages in front of the first.
    template = "{{ messages | length }}" + CHAT_TEMPLATE
    async with a_deployment(says("hello"), store=a_store(), chat_template=template) as d:
        await d.client.chat(user("hi"), session="s")
        await d.client.chat(user("more"), session="s")
        before, after = await prompts(d, 2)
    assert before[:1] == ids_of("1")
    assert after[:1] == ids_of("3")
    assert after[1:] == (
        *turn("user", "hi"),
        *turn("assistant", "hello"),
        *turn("user", "more"),
        *ANSWERS,
    )


async def test_a_model_without_a_template_cannot_chat() -> None:
    async with a_deployment(chat_template=None) as d:
        with pytest.raises(InvalidArgument, match="no chat template"):
            await d.client.chat(user("hi"))


async def test_conversations_go_on_while_the_store_is_away_and_are_stored_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = AwayStore()
    async with a_deployment(says("hello"), store=store) as d:
        await d.client.generate("a", session="s")
        store.away = True
        with caplog.at_level(logging.WARNING, logger="router.conversations"):
            await d.client.generate("b", session="s", must_exist=True)
            await d.client.generate("new", session="begun while it is away")
        assert "cut off" in caplog.text
        with pytest.raises(StoreUnavailable) as caught:
            await d.client.generate("c", session="of another router", must_exist=True)
        assert caught.value.status.retriable
        store.away = False
        await d.client.generate("c", session="s")
        seen = await prompts(d, 4)
    assert seen[-1] == ids_of("ahellobhelloc")
    kept = await store.get("", "s")
    assert kept is not None
    assert (kept.version, kept.tokens) == (3, ids_of("ahellobhellochello"))


async def test_without_a_store_sessions_live_in_the_router() -> None:
    async with a_deployment(says("hello")) as d:
        await d.client.generate("a", session="s")
        await d.client.generate("b", session="s", must_exist=True)
        assert (await prompts(d, 2))[-1] == ids_of("ahellob")


async def test_a_session_that_outgrows_the_context_is_an_invalid_argument() -> None:
    async with a_deployment(says("hello")) as d:
        await d.client.generate("x" * 4000, session="s")
        with pytest.raises(InvalidArgument, match="4105 tokens"):
            await d.client.generate("y" * 100, session="s")
