"""The HTTP front over real connections; workers are simulated."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest

from eastwest.clock import SystemClock
from eastwest.errors import ConfigError
from eastwest.messages import Abort, Prefill, Reserve
from router.server import Router
from tests.byte_tokenizer import END, ids_of, write_tokenizer
from tests.integration.deployment import Deployment, a_deployment, says
from tests.integration.http_front import (
    CHAT,
    COMPLETIONS,
    HELLO,
    base_url,
    events,
    http_config,
    over_http,
)

# What comes back.


async def test_tokens_stream_as_they_come() -> None:
    async with over_http(says("hello")) as (d, client):
        d.decode.stepping.hold()
        body = {"messages": HELLO, "stream": True, "max_tokens": 20}
        async with client.stream("POST", CHAT, json=body) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            told = events(response)
            texts = []
            for _ in "hello":
                _, event = await anext(told)
                texts.append(event["choices"][0]["delta"]["content"])
                d.decode.stepping.allow(1)
            kind, ending = await anext(told)
            assert (kind, ending["choices"][0]["finish_reason"]) == ("message", "stop")
            assert [kind async for kind, _ in told] == ["done"]
    assert texts == list("hello")


async def test_both_kinds_answer_at_once_too() -> None:
    async with over_http(says("hello")) as (_, client):
        chat = (await client.post(CHAT, json={"messages": HELLO, "model": "tiny"})).json()
        text = (await client.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 3})).json()
    assert chat["choices"][0]["message"]["content"] == "hello"
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert chat["usage"]["completion_tokens"] == 6
    assert text["choices"][0]["text"] == "hel"
    assert text["choices"][0]["finish_reason"] == "length"
    assert text["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_stop_string_is_not_in_the_text() -> None:
    async with over_http(says("one two three")) as (_, client):
        body = {"prompt": "hi", "stop": " th", "stream": True}
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            told = [e async for kind, e in events(response) if kind == "message"]
    assert "".join(e["choices"][0]["text"] for e in told) == "one two"
    assert told[-1]["choices"][0]["finish_reason"] == "stop"
    assert told[-1]["choices"][0]["stop_reason"] == " th"


async def test_workers_get_what_the_client_asked_for() -> None:
    async with over_http() as (d, client):
        body = {
            "prompt": [9, 8], "temperature": 0.5, "seed": 11, "max_tokens": 3, "top_k": 4,
            "stop_token_ids": [7], "ignore_eos": True, "min_tokens": 2,
        }  # fmt: skip
        answer = await client.post(COMPLETIONS, json=body)
        assert answer.status_code == 200
        [reserve] = await d.decode.received(Reserve)
    sampling = reserve.sampling
    assert reserve.prompt == (9, 8)
    assert (sampling.temperature, sampling.seed, sampling.top_k) == (0.5, 11, 4)
    assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.min_tokens) == ((7,), True, 2)


async def test_a_request_is_explained_to_its_own_tenant() -> None:
    async with over_http(says("hello")) as (_, client):
        await client.post(COMPLETIONS, json={"prompt": "hi", "request_id": "r1"})
        own = await client.get("/v1/requests/r1/explain")
        foreign = await client.get("/v1/requests/r1/explain", headers={"X-Eastwest-Tenant": "b"})
    assert own.status_code == 200
    assert (own.json()["state"], own.json()["prompt_tokens"]) == ("completed", 2)
    assert "p0 with d0" in own.json()["decisions"][0]["reason"]
    assert foreign.status_code == 404


async def test_the_tenant_comes_in_a_header() -> None:
    async with over_http() as (d, client):
        body = {"prompt": "hi", "max_tokens": 2}
        for tenant in ({}, {b"X-Eastwest-Tenant": "é".encode()}):
            assert (await client.post(COMPLETIONS, json=body, headers=tenant)).is_success
        await d.client.generate("hi", max_tokens=2)
        nobody, theirs, grpc = await d.decode.received(Reserve, 3)
        twice = [("X-Eastwest-Tenant", "a"), ("X-Eastwest-Tenant", "b")]
        refused = await client.post(COMPLETIONS, json=body, headers=twice)
    assert nobody.salt == grpc.salt != theirs.salt
    assert refused.status_code == 400


async def test_a_session_goes_on_with_only_the_new_turn() -> None:
    async with over_http(says("hello")) as (d, client):
        body = {"messages": HELLO, "session": "s", "max_tokens": 9}
        await client.post(CHAT, json=body)
        again = await client.post(CHAT, json={**body, "session": {"id": "s", "must_exist": True}})
        first, second = await d.decode.received(Reserve, 2)
        new = {**body, "session": {"id": "new", "must_exist": True}}
        unknown = await client.post(CHAT, json=new)
    assert again.status_code == 200
    assert second.prompt[: len(first.prompt) + 5] == (*first.prompt, *ids_of("hello"))
    assert second.prompt[len(first.prompt) + 5] == END
    assert unknown.status_code == 404


async def test_a_request_id_is_echoed_and_another_is_the_answers_own() -> None:
    async with over_http(says("a")) as (_, client):
        headers = {"X-Request-Id": "trace-1"}
        mine = {"prompt": "hi", "request_id": "mine"}
        answers = [await client.post(COMPLETIONS, json=mine, headers=headers) for _ in range(2)]
        broken = await client.post(COMPLETIONS, json={}, headers=headers)
    assert [a.json()["id"] for a in answers] == ["cmpl-mine"] * 2
    assert {a.headers["x-request-id"] for a in (*answers, broken)} == {"trace-1"}


async def test_the_other_paths() -> None:
    async with over_http() as (d, client):
        models = (await client.get("/v1/models")).json()
        assert [m["id"] for m in models["data"]] == ["tiny"]
        assert models["data"][0]["max_model_len"] == 4096
        assert (await client.get("/v1/models/tiny")).json() == models["data"][0]
        assert (await client.get("/v1/models/a/b")).status_code == 404
        assert "version" in (await client.get("/version")).json()
        assert (await client.get("/health")).json() == {"status": "ok"}
        await d.router.remove_worker("d0")
        unhealthy = await client.get("/health")
        assert unhealthy.status_code == 503
        assert unhealthy.json()["error"]["code"] == "unavailable"
        assert (await client.get("/healthz")).status_code == 200


async def test_a_connection_serves_one_call_after_the_other() -> None:
    async with over_http(says("hello")) as (d, client):
        reader, writer = await asyncio.open_connection(*_host_port(d))
        body = b'{"prompt": "hi"}'
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        call = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        for _ in range(3):
            writer.write(call + call)
            for _ in range(2):
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 ")
                [length] = [x for x in answer.lower().split(b"\r\n") if b"content-length" in x]
                assert b"hello" in await reader.readexactly(int(length.split(b":")[1]))
        writer.close()
        await writer.wait_closed()
        assert client.is_closed is False


# How calls fail.


def error(response: httpx2.Response) -> dict[str, Any]:
    told: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code", "retriable"} <= set(told)
    return told


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (COMPLETIONS, b"{", 400, "invalid_argument", None),
        (COMPLETIONS, b"", 400, "invalid_argument", None),
        (COMPLETIONS, b'{"prompt":"hi","n":2}', 400, "invalid_argument", "n"),
        (COMPLETIONS, b'{"prompt":"hi","top_p":2}', 400, "invalid_argument", "top_p"),
        (COMPLETIONS, b'{"prompt":[999]}', 400, "invalid_argument", None),
        (COMPLETIONS, b'{"prompt":"hi","max_tokens":0}', 400, "invalid_argument", "max_tokens"),
        (COMPLETIONS, b'{"prompt":"hi","max_tokens":5000}', 400, "invalid_argument", None),
        (COMPLETIONS, b'{"prompt":"hi","model":"other"}', 404, "not_found", "model"),
        (CHAT, b'{"messages":[{"role":"tool","content":"x"}]}', 400, "invalid_argument", None),
        (CHAT, b'{"prompt":"hi"}', 400, "invalid_argument", "messages"),
        ("/v1/embeddings", b"{}", 404, "not_found", None),
        ("/v1/models", b"{}", 404, "not_found", None),
    ],
)
async def test_what_cannot_be_served_has_a_typed_error(
    path: str, body: bytes, status: int, code: str, param: str | None
) -> None:
    async with over_http(says("hello")) as (_, client):
        headers = {"content-type": "application/json"}
        response = await client.post(path, content=body, headers=headers)
        assert response.status_code == status
        assert (error(response)["code"], error(response)["param"]) == (code, param)
        assert response.headers["x-should-retry"] == "false"
        assert (await client.post(CHAT, json={"messages": HELLO})).is_success


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-encoding": "gzip"},
        {"x-eastwest-timeout-s": "soon"},
        {"x-eastwest-timeout-s": "-1"},
        {"x-eastwest-timeout-s": "nan"},
        {"x-eastwest-tenant": b"\xff"},
        {"x-eastwest-tenant": "x" * 200},
    ],
)
async def test_headers_that_cannot_be_taken_are_refused(headers: dict[str, Any]) -> None:
    async with over_http() as (_, client):
        headers = {"content-type": "application/json", **headers}
        response = await client.post(COMPLETIONS, content=b'{"prompt":"hi"}', headers=headers)
    assert response.status_code == 400
    assert "allowed" in error(response)["message"] or "UTF-8" in error(response)["message"]


async def test_a_body_over_the_limit_is_too_large_however_it_is_sent() -> None:
    config = http_config(limits={"message_bytes": 10_000, "prompt_bytes": 100})

    async def in_parts() -> Any:
        for _ in range(1000):
            yield b"x" * 1000

    async with over_http(says("hello"), config=config) as (_, client):
        headers = {"content-type": "application/json"}
        whole = await client.post(COMPLETIONS, content=b"x" * 1_000_000, headers=headers)
        parts = await client.post(COMPLETIONS, content=in_parts(), headers=headers)
        prompt = await client.post(COMPLETIONS, json={"prompt": "x" * 101})
        assert [r.status_code for r in (whole, parts, prompt)] == [413] * 3
        assert {error(r)["code"] for r in (whole, parts, prompt)} == {"too_large"}
        assert (await client.post(COMPLETIONS, json={"prompt": "hi"})).is_success


async def test_overload_is_429_with_a_hint() -> None:
    config = http_config(router={"queue_max": 1, "active_max": 1})
    async with over_http(says("hello"), config=config) as (d, client):
        d.prefill.prefilling.hold()
        call = {"prompt": "hi"}
        running = [asyncio.create_task(client.post(COMPLETIONS, json=call)) for _ in range(2)]
        await d.prefill.received(Prefill)
        await _until_waiting(d, 1)
        refused = await client.post(COMPLETIONS, json={**call, "stream": True})
        d.prefill.prefilling.open()
        assert [r.status_code for r in await asyncio.gather(*running)] == [200, 200]
    assert refused.status_code == 429
    assert (error(refused)["code"], error(refused)["retriable"]) == ("overloaded", True)
    assert refused.headers["x-should-retry"] == "true"
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) >= 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_before_the_first_token_is_504_and_names_its_phase(stream: bool) -> None:
    async with over_http() as (d, client):
        d.prefill.prefilling.hold()
        headers = {"X-Eastwest-Timeout-S": "0.5"}
        body = {"prompt": "hi", "stream": stream}
        response = await client.post(COMPLETIONS, json=body, headers=headers)
        await d.decode.received(Abort)
        d.prefill.prefilling.open()
    assert response.status_code == 504
    assert (error(response)["code"], error(response)["phase"]) == ("deadline_exceeded", "prefill")


async def test_a_deadline_in_mid_stream_is_its_last_event() -> None:
    async with over_http() as (d, client):
        d.decode.stepping.hold()
        d.decode.stepping.allow(1)
        headers = {"X-Eastwest-Timeout-S": "1"}
        body = {"prompt": "hi", "stream": True}
        async with client.stream("POST", COMPLETIONS, json=body, headers=headers) as response:
            told = [event async for event in events(response)]
        d.decode.stepping.open()
    kind, last = told[-1]
    assert [k for k, _ in told[:-1]] == ["message"] * (len(told) - 1)
    assert (kind, last["error"]["code"], last["error"]["phase"]) == (
        "error",
        "deadline_exceeded",
        "decode",
    )


async def test_an_error_event_is_framed_exactly_and_nothing_follows() -> None:
    async with over_http() as (d, client):
        d.decode.stepping.hold()
        body = {"prompt": "hi", "stream": True, "request_id": "mine"}
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            data = response.aiter_raw()
            first = await anext(data)
            assert first.startswith(b'data: {"id":"cmpl-mine"')
            assert first.endswith(b"}\n\n")
            assert await d.client.abort("mine")
            rest = b"".join([part async for part in data])
        d.decode.stepping.open()
    assert rest == (
        b'event: error\ndata: {"error":{"message":"the request was aborted",'
        b'"type":"invalid_request_error","param":null,"code":"cancelled","retriable":false,'
        b'"phase":"transfer"}}\n\n'
    )


async def test_a_router_that_no_worker_has_reached_is_unavailable(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    router = Router(http_config(), tmp_path, None, SystemClock(), random.Random(7))
    await router.start()
    try:
        async with httpx2.AsyncClient(base_url=f"http://{router.http_address}") as client:
            told = [
                await client.post(COMPLETIONS, json={"prompt": "hi"}),
                await client.get("/v1/models"),
                await client.get("/health"),
            ]
    finally:
        await router.stop()
    assert [r.status_code for r in told] == [503] * 3
    assert {error(r)["code"] for r in told} == {"unavailable"}


async def test_a_body_that_does_not_arrive_in_time_is_504() -> None:
    async with over_http() as (d, _):
        reader, writer = await asyncio.open_connection(*_host_port(d))
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += "X-Eastwest-Timeout-S: 0.1\r\nContent-Length: 100\r\n\r\n{"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 504 ")
        writer.close()
        await writer.wait_closed()


async def test_a_router_that_stops_tells_its_streams() -> None:
    async with over_http() as (d, client):
        d.decode.stepping.hold()
        body = {"prompt": "hi", "stream": True}
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            told = events(response)
            await anext(told)
            stopping = asyncio.create_task(d.router.stop())
            kind, last = await anext(told)
            assert (kind, last["error"]["code"]) == ("error", "unavailable")
            assert [event async for event in told] == []
        await stopping
        d.decode.stepping.open()
        with pytest.raises(httpx2.ConnectError):
            await client.get("/health")


# Clients that leave.


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_noticed_by_both_workers(stream: bool) -> None:
    async with over_http() as (d, client):
        d.prefill.prefilling.hold()
        body = {"prompt": "hi", "stream": stream}
        call = asyncio.create_task(client.post(COMPLETIONS, json=body))
        await d.prefill.received(Prefill)
        call.cancel()
        await d.prefill.received(Abort)
        await d.decode.received(Abort)
        d.prefill.prefilling.open()


async def test_leaving_in_mid_stream_cancels_the_request() -> None:
    async with over_http() as (d, client):
        d.decode.stepping.hold()
        body = {"prompt": "hi", "stream": True}
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            async for _ in events(response):
                break
        await d.decode.received(Abort)
        d.decode.stepping.open()


async def test_leaving_in_the_middle_of_the_body_leaves_nothing() -> None:
    async with over_http(says("hello")) as (d, client):
        _, writer = await asyncio.open_connection(*_host_port(d))
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await client.post(COMPLETIONS, json={"prompt": "hi"})).is_success


async def test_a_client_that_lags_gets_several_tokens_in_an_event_and_misses_none() -> None:
    async with over_http() as (d, client):
        body = {"prompt": "hi", "max_tokens": 2000, "logprobs": 20, "stream": True,
                "stream_options": {"continuous_usage_stats": True}}  # fmt: skip
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            told = events(response)
            first = await anext(told)
            # Nothing is read until the workers are through, which no client can hold up.
            await d.decode.freed()
            rest = [event async for kind, event in told if kind == "message"]
    all_events = [first[1], *rest]
    text = "".join(e["choices"][0]["text"] for e in all_events)
    assert len(text) == 2000
    assert all_events[-1]["usage"]["completion_tokens"] == 2000


async def test_a_client_that_never_reads_is_given_up() -> None:
    async with over_http() as (d, client):
        reader, writer = await asyncio.open_connection(*_host_port(d), limit=1)
        body = b'{"prompt":"hi","max_tokens":4000,"logprobs":20,"stream":true}'
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"X-Eastwest-Timeout-S: 3\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await d.decode.received(Reserve)
        await d.decode.freed()
        assert (await client.get("/health")).is_success
        writer.close()
        await writer.wait_closed()
        del reader


async def test_what_is_not_http_is_refused_and_the_server_lives() -> None:
    async with over_http(says("hello")) as (d, client):
        for data in (b"\x00\xff" * 100, b"GET /\r\n\r\n", b"x" * 100_000):
            reader, writer = await asyncio.open_connection(*_host_port(d))
            writer.write(data + b"\r\n\r\n")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 40")
            writer.close()
        assert (await client.post(COMPLETIONS, json={"prompt": "hi"})).is_success


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ",
        b"GET /",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Late: ",
    ],
    ids=["value", "path", "name", "trailer"],
)
async def test_a_header_without_end_is_cut_off(head: bytes) -> None:
    async with over_http(says("hello")) as (d, client):
        reader, writer = await asyncio.open_connection(*_host_port(d))
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(b"x" * 10_000)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
            assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
        writer.close()
        assert writer.is_closing()
        assert (await client.post(COMPLETIONS, json={"prompt": "hi"})).is_success


async def test_headers_that_come_piece_by_piece_may_have_as_much_as_is_allowed() -> None:
    async with over_http(says("hello")) as (d, _):
        reader, writer = await asyncio.open_connection(*_host_port(d))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: ")
        for _ in range(50):
            writer.write(b"x" * 100)
            await writer.drain()
        writer.write(b"\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()


# Where it listens.


async def test_http_is_off_unless_asked_for() -> None:
    async with a_deployment() as d:
        assert d.router.http_address is None


async def test_a_port_in_use_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for setting in ("http_port", "port"):
            config = http_config(router={setting: port})
            router = Router(config, tmp_path, None, SystemClock(), random.Random(7))
            with pytest.raises(ConfigError, match=f"router.{setting} is {port}"):
                await router.start()


async def test_ipv6_addresses_are_written_in_brackets() -> None:
    async with over_http(config=http_config(router={"host": "::1"})) as (d, client):
        assert base_url(d).startswith("http://[::1]:")
        assert (await client.get("/healthz")).is_success


def _host_port(d: Deployment) -> tuple[str, int]:
    assert d.router.http_address is not None
    host, _, port = d.router.http_address.rpartition(":")
    return host, int(port)


async def _until_waiting(d: Deployment, count: int) -> None:
    """Loads are asked for, not announced, so this asks until they say so."""
    async with asyncio.timeout(60):
        while (await d.client.loads()).waiting != count:
            pass
