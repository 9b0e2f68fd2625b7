"""Random bodies over a real connection.

1. Whatever is sent, the answer is a good one or a typed 4xx error in OpenAI's shape.
2. No input kills the server or leaves anything on a worker.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http.bodies import IGNORED, NEUTRAL, read_body
from router.http.fields import Refused
from tests.integration.deployment import says
from tests.integration.http_front import CHAT, COMPLETIONS, over_http

FIELDS = (
    "prompt", "messages", "model", "stream", "stream_options", "temperature", "top_p", "top_k",
    "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop",
    "stop_token_ids", "max_tokens", "max_completion_tokens", "min_tokens", "ignore_eos",
    "logprobs", "top_logprobs", "session", "priority", "request_id", "timing", "slo_ttft_s",
    "slo_tpot_s", *IGNORED, *NEUTRAL,
)  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 20)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["hi", "tiny", "user", "system", "text"])
)
names = st.sampled_from(("role", "content", "type", "text", "id", "include_usage")) | st.text(
    max_size=5
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4)
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "x"]), "content": st.text(max_size=9)}
)
good = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=9) | st.lists(st.integers(0, 300), max_size=5),
        "messages": st.lists(messages, max_size=3),
        "stream": st.booleans(),
        "temperature": st.floats(0, 2),
        "max_tokens": st.integers(1, 9),
    },
)
bodies = st.builds(
    lambda base, more: {**base, **more},
    good,
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), values, max_size=3),
)


@given(bodies | values, st.booleans())
@settings(max_examples=1000)
def test_bodies_are_read_or_refused(body: Any, chat: bool) -> None:
    read_or_refused(json.dumps(body).encode(), chat)


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=300)
def test_bytes_are_read_or_refused(data: bytes, chat: bool) -> None:
    read_or_refused(data, chat)


def read_or_refused(data: bytes, chat: bool) -> None:
    refusal = None
    try:
        read_body(data, chat=chat, tenant="")
    except Refused as error:
        refusal = error
    assert refusal is None or 0 < len(refusal.message) < 500


@given(st.lists(st.tuples(bodies | values, st.booleans()), min_size=20, max_size=40))
@settings(max_examples=8)
def test_the_server_answers_whatever_it_is_sent(calls: list[tuple[Any, bool]]) -> None:
    asyncio.run(_send(calls))


async def _send(calls: list[tuple[Any, bool]]) -> None:
    async with over_http(says("hello")) as (d, client):
        for body, chat in calls:
            data = json.dumps(body).encode()
            headers = {"content-type": "application/json"}
            path = CHAT if chat else COMPLETIONS
            _check(await client.post(path, content=data, headers=headers))
        answer = await client.post(COMPLETIONS, json={"prompt": "hi"})
        assert answer.json()["choices"][0]["text"] == "hello"
        assert (await d.client.loads()).active == 0


def _check(response: httpx2.Response) -> None:
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, response.text
        error = response.json()["error"]
        assert error["message"]
        assert error["code"] in ("invalid_argument", "not_found", "too_large")
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        assert response.json()["choices"]
