"""Sessions listed, looked at, forked, deleted, exported and imported over gRPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from eastwest import AsyncClient
from eastwest.clock import SystemClock
from eastwest.errors import InvalidArgument, NotFound, Overloaded, StoreUnavailable, TooLarge
from eastwest.messages import Reserve
from eastwest.sessions_client import SessionsClient
from eastwest.types import Role
from eastwest.v1 import sessions_pb2 as sessions
from eastwest.v1 import sessions_pb2_grpc as sessions_grpc
from kv_store.embedded import EmbeddedValkey
from kv_store.sessions import MemorySessionStore, decode_session, encode_session
from router.server import Router
from tests.byte_tokenizer import ids_of, write_tokenizer
from tests.integration.deployment import Deployment, a_config, a_deployment, says
from tests.integration.test_router_sessions import AwayStore, a_store, user
from tests.integration.test_serving import a_prompt
from tests.integration.test_sessions import a_stored_rig, spilled


@asynccontextmanager
async def talking(
    store: MemorySessionStore | AwayStore | None = None, tenant: str = ""
) -> AsyncIterator[tuple[Deployment, SessionsClient]]:
    async with (
        a_deployment(says("hello"), store=store) as d,
        SessionsClient(d.address, tenant=tenant) as client,
    ):
        yield d, client


@pytest.mark.parametrize("stored", [True, False])
async def test_sessions_are_listed_with_their_sizes(stored: bool) -> None:
    async with talking(a_store() if stored else None) as (d, client):
        for name in ("b", "c", "a"):
            await d.client.generate("hi", session=name)
        await d.client.chat(user("hi"), session="talk")
        await d.client.chat(user("more"), session="talk")
        listed = [session async for session in client.list(page=2)]
    assert [s.id for s in listed] == ["a", "b", "c", "talk"]
    assert [s.messages for s in listed] == [0, 0, 0, 4]
    assert [s.version for s in listed] == [1, 1, 1, 2]
    assert listed[0].tokens == len("hi" + "hello")
    assert all(s.model_matches and s.age_s < 3600 for s in listed)


async def test_a_fork_goes_its_own_way() -> None:
    async with talking(a_store()) as (d, client):
        await d.client.generate("a", session="one")
        forked = await client.fork("one", "two")
        await d.client.generate("b", session="one")
        await d.client.generate("c", session="two")
        with pytest.raises(InvalidArgument, match="'two' exists"):
            await client.fork("one", "two")
        with pytest.raises(NotFound, match="'none' does not exist"):
            await client.fork("none", "three")
        prompts = [c.prompt for c in await d.decode.received(Reserve, 3)]
    assert (forked.id, forked.tokens, forked.version) == ("two", len("ahello"), 1)
    assert prompts == [tuple(ids_of(text)) for text in ("a", "ahellob", "ahelloc")]


async def test_a_deleted_session_begins_anew_on_every_router(tmp_path: Path) -> None:
    store = a_store()
    write_tokenizer(tmp_path)
    async with talking(store) as (d, client):
        other = Router(a_config(), tmp_path, store, SystemClock(), random.Random(8))
        address = await other.start()
        other.add_worker("p0", d.prefill.address)
        other.add_worker("d0", d.decode.address)
        await other.wait_ready()
        try:
            async with AsyncClient(address) as beside:
                await beside.generate("a", session="s")
                assert await client.delete("s")
                assert not await client.delete("s")
                assert [s async for s in client.list()] == []
                with pytest.raises(NotFound):
                    await client.get("s")
                # It has the session at hand, and must not take that for the latest.
                await beside.generate("b", session="s")
                await d.client.generate("c", session="s")
        finally:
            await other.stop()
        prompts = [c.prompt for c in await d.decode.received(Reserve, 3)]
    assert prompts == [tuple(ids_of(text)) for text in ("a", "b", "bhelloc")]


async def test_a_session_in_use_is_not_deleted() -> None:
    async with talking(a_store()) as (d, client):
        await d.client.generate("a", session="s")
        d.decode.stepping.hold()
        async with d.client.generate("b", session="s") as generation:
            await anext(generation)
            with pytest.raises(Overloaded, match="in use"):
                await client.delete("s")
            d.decode.stepping.open()
            await generation
        assert await client.delete("s")


async def test_a_session_goes_on_from_an_export() -> None:
    async with talking(a_store()) as (d, client):
        await d.client.generate("a", session="s")
        data = await client.export("s")
    async with talking(a_store(), tenant="other") as (d, client):
        assert (await client.import_(data)).id == "s"
        assert (await client.import_(data, "t")).tokens == len("ahello")
        with pytest.raises(InvalidArgument, match="'s' exists"):
            await client.import_(data)
        async with AsyncClient(d.address, tenant="other") as tenant:
            await tenant.generate("b", session="t")
        [reserve] = await d.decode.received(Reserve, 1)
    assert reserve.prompt == tuple(ids_of("ahellob"))


async def test_what_is_no_export_is_refused() -> None:
    async with talking(a_store()) as (d, client):
        await d.client.generate("a", session="s")
        await d.client.chat(user("hi"), session="talk")
        data = await client.export("s")
        for bad in (b"", b"x" * 100, data[:-1], data[:-1] + b"\0", data + b"\0"):
            with pytest.raises(InvalidArgument, match="no export"):
                await client.import_(bad, "new")
        record = decode_session(data)
        for forged in (
            replace(record, tokens=(1 << 20,)),
            replace(record, fingerprint="another"),
            replace(record, tokens=(), fingerprint=""),
        ):
            with pytest.raises(InvalidArgument, match="data "):
                await client.import_(encode_session(forged), "new")
        # A chat of another model is told anew from its messages.
        talk = decode_session(await client.export("talk"))
        foreign = encode_session(replace(talk, fingerprint="another"))
        assert not (await client.import_(foreign, "new")).model_matches
        await d.client.chat(user("more"), session="new")


async def test_a_session_of_another_tenant_is_as_if_it_did_not_exist() -> None:
    async with talking(a_store(), tenant="mallory") as (d, client):
        async with AsyncClient(d.address, tenant="alice") as alice:
            await alice.generate("secret", session="s")
        errors = []
        for name in ("s", "no-such"):
            for ask in (client.get, client.export, lambda n: client.fork(n, "mine")):
                with pytest.raises(NotFound) as error:
                    await ask(name)
                errors.append(error.value.message.replace(repr(name), "…"))
        assert len(set(errors)) == 1
        assert not await client.delete("s")
        assert [s async for s in client.list()] == []
        # The id is free for whoever takes it in another tenant.
        async with AsyncClient(d.address, tenant="mallory") as mallory:
            await mallory.generate("b", session="s")
        prompts = [c.prompt for c in await d.decode.received(Reserve, 2)]
        async with SessionsClient(d.address, tenant="alice") as owner:
            assert (await owner.get("s")).session.tokens == len("secrethello")
    assert prompts[-1] == tuple(ids_of("b"))


async def test_without_the_store_nothing_is_said_to_be_done() -> None:
    store = AwayStore()
    async with talking(store) as (d, client):
        await d.client.generate("a", session="s")
        store.away = True
        for ask in (client.delete("s"), client.fork("s", "t"), client.get("elsewhere")):
            with pytest.raises(StoreUnavailable):
                await ask
        with pytest.raises(StoreUnavailable):
            _ = [session async for session in client.list()]
        store.away = False
        assert (await client.get("s")).session.version == 1
        with pytest.raises(NotFound):
            await client.get("t")


@pytest.mark.parametrize(
    ("method", "request_", "message"),
    [
        ("Get", sessions.GetSessionRequest(), "id is empty; allowed: 1 to 256 bytes"),
        ("Get", sessions.GetSessionRequest(id="x" * 257), "id has 257 bytes"),
        ("Get", sessions.GetSessionRequest(id="a\n"), "printable"),
        ("Get", sessions.GetSessionRequest(id="a", tenant="t" * 129), "tenant has 129 bytes"),
        ("Fork", sessions.ForkSessionRequest(id="s"), "new_id is empty"),
        ("List", sessions.ListSessionsRequest(limit=-1), "limit is -1; allowed: 0 to 1000"),
        ("List", sessions.ListSessionsRequest(limit=1001), "limit is 1001"),
        ("Delete", sessions.DeleteSessionRequest(), "id is empty"),
    ],
)
async def test_what_cannot_be_meant_is_refused(method: str, request_: object, message: str) -> None:
    async with talking(a_store()) as (d, _):
        await d.client.generate("a", session="s")
        async with grpc.aio.insecure_channel(d.address) as channel:
            stub = sessions_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await getattr(stub, method)(request_)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (error.value.details() or "")


async def test_an_export_that_nobody_could_import_is_refused() -> None:
    config = a_config(limits={"message_bytes": 1024})
    async with a_deployment(says("hello"), config=config, store=a_store()) as d:
        await d.client.generate("a" * 300, session="s")
        async with SessionsClient(d.address) as client:
            with pytest.raises(TooLarge, match=r"allowed: 1024, limits\.message_bytes"):
                await client.export("s")


async def test_where_the_kv_of_a_session_is(tiny_model_dir: Path) -> None:
    async with a_stored_rig(tiny_model_dir, EmbeddedValkey(64 << 20)) as rig:
        await rig.client.generate(a_prompt(40), session="s", temperature=0.0, max_tokens=9)
        async with SessionsClient(rig.address) as client:
            await rig.until(lambda: spilled(rig) == 1)
            whole = 48 // rig.config.kv.block_tokens * rig.config.kv.block_tokens
            async with asyncio.timeout(60):
                # The router hears of it with what the worker says next.
                while (detail := await client.get("s")).stored_tokens != whole:
                    pass
            assert detail.session.tokens == 49
            assert set(detail.workers) <= {"prefill-0", "decode-0"}
            model = rig.replicas["decode-0"].info().model
            assert detail.kv_bytes == 49 * model.kv.bytes_per_token
            await rig.stop("prefill-0")
            await rig.start("prefill-1", Role.PREFILL)
            await rig.until_up("prefill-1")
            assert "prefill-0" not in (await client.get("s")).workers
