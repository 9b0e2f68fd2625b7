"""The HTTP front with the clients that people use: OpenAI's own, and what load generators send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from eastwest.config import Config
from eastwest.messages import Prefill, Reserve
from eastwest.testing.worker_server import NextToken
from tests.integration.deployment import Deployment, babbles, says
from tests.integration.http_front import (
    CHAT,
    COMPLETIONS,
    WAIT_S,
    base_url,
    events,
    http_config,
    over_http,
)

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def openai_client(
    next_token: NextToken = babbles, *, config: Config | None = None, retries: int = 0
) -> AsyncIterator[tuple[Deployment, openai.AsyncOpenAI]]:
    async with (
        over_http(next_token, config=config) as (d, _),
        openai.AsyncOpenAI(
            base_url=f"{base_url(d)}/v1", api_key="none", max_retries=retries, timeout=WAIT_S
        ) as client,
    ):
        yield d, client


async def test_a_chat() -> None:
    async with openai_client(says("hello")) as (_, client):
        [model] = [m.id async for m in client.models.list()]
        answer = await client.chat.completions.create(
            model=model, messages=HELLO, temperature=0, max_completion_tokens=10, user="me",
            logprobs=True, top_logprobs=2, extra_body={"timing": True},
        )  # fmt: skip
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "hello")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [t.token for t in choice.logprobs.content] == [*"hello", "<e>"]
    assert all(len(t.top_logprobs) == 2 for t in choice.logprobs.content)
    extra = answer.model_extra or {}
    assert extra["timing"]["decode_worker"] == "d0"


async def test_an_answer_sent_back_is_the_next_turns_history() -> None:
    async with openai_client(says("hello")) as (d, client):
        first = await client.chat.completions.create(model="tiny", messages=HELLO)
        said: Any = first.choices[0].message.model_dump()
        await client.chat.completions.create(model="tiny", messages=[*HELLO, said, *HELLO])
        one, two = await d.decode.received(Reserve, 2)
    assert two.prompt[: len(one.prompt)] == one.prompt


async def test_a_streamed_chat() -> None:
    async with openai_client(says("héllo")) as (_, client):
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *told, usage = chunks
    assert "".join(c.choices[0].delta.content or "" for c in told) == "héllo"
    assert [c.choices[0].delta.role for c in told] == ["assistant", *[None] * (len(told) - 1)]
    assert [c.choices[0].finish_reason for c in told] == [*[None] * (len(told) - 1), "stop"]
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 7
    assert len({c.id for c in chunks}) == 1


async def test_the_clients_own_accumulation_of_a_stream_is_the_whole_answer() -> None:
    async with (
        openai_client(says("hello")) as (_, client),
        client.chat.completions.stream(model="tiny", messages=HELLO, logprobs=True) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "hello"
    assert final.choices[0].finish_reason == "stop"


async def test_a_completion_whole_and_streamed() -> None:
    async with openai_client() as (_, client):
        whole = await client.completions.create(
            model="tiny", prompt=[5, 6], max_tokens=4, logprobs=2, seed=1, stop=["?"]
        )
        stream = await client.completions.create(
            model="tiny", prompt=[5, 6], max_tokens=4, stream=True
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chr(ord("a") + (5 + 6 + i) % 26) for i in range(4))
    assert whole.choices[0].text == text == "".join(c.choices[0].text for c in chunks)
    assert whole.choices[0].finish_reason == "length" == chunks[-1].choices[0].finish_reason
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list(text)
    assert logprobs.text_offset == [0, 1, 2, 3]


async def test_errors_are_the_clients_own() -> None:
    async with openai_client() as (_, client):
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="tiny", messages=HELLO, temperature=-1)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="gpt", messages=HELLO)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_argument")
    assert bad.value.type == "invalid_request_error"


async def test_overload_is_a_rate_limit_that_the_client_retries_by_itself() -> None:
    config = http_config(router={"queue_max": 1, "active_max": 1})
    async with openai_client(says("hello"), config=config, retries=20) as (d, client):
        d.prefill.prefilling.hold()
        hasty = client.with_options(max_retries=0)
        calls = [asyncio.create_task(_ask(client)) for _ in range(2)]
        await d.prefill.received(Prefill)
        async with asyncio.timeout(WAIT_S):
            while (await d.client.loads()).waiting != 1:
                pass
        with pytest.raises(openai.RateLimitError):
            await _ask(hasty)
        late = asyncio.create_task(_ask(client))
        d.prefill.prefilling.open()
        assert await asyncio.gather(*calls, late) == ["hello"] * 3


async def _ask(client: openai.AsyncOpenAI) -> str | None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    return answer.choices[0].message.content


async def test_an_error_in_mid_stream_is_raised_by_the_client() -> None:
    async with openai_client() as (d, client):
        d.decode.stepping.hold()
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, extra_body={"request_id": "mine"}
        )
        told = aiter(stream)
        await anext(told)
        assert await d.client.abort("mine")
        with pytest.raises(openai.APIError, match="the request was aborted"):
            await anext(told)
        d.decode.stepping.open()


async def test_the_blocking_client_too() -> None:
    def use(url: str) -> str | None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            return "".join(c.choices[0].delta.content or "" for c in stream)

    async with over_http(says("hello")) as (d, _):
        assert await asyncio.to_thread(use, base_url(d)) == "hello"


# What load generators send, and what they read of the answer.

OUTPUT_TOKENS = 6
VLLM_COMPLETION = {
    "model": "tiny", "prompt": "hi", "repetition_penalty": 1.0, "max_tokens": OUTPUT_TOKENS,
    "logprobs": None, "stream": True, "stream_options": {"include_usage": True},
    "ignore_eos": True, "temperature": 0.0,
}  # fmt: skip
VLLM_CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "max_completion_tokens": OUTPUT_TOKENS, "stream": True,
    "stream_options": {"include_usage": True}, "ignore_eos": True,
}  # fmt: skip
GUIDELLM_COMPLETION = {
    "model": "tiny", "prompt": "hi", "stream": True, "max_tokens": OUTPUT_TOKENS, "stop": None,
    "ignore_eos": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}  # fmt: skip
GUIDELLM_CHAT = {
    "model": "tiny", "messages": VLLM_CHAT["messages"], "stream": True, "stop": None,
    "max_completion_tokens": OUTPUT_TOKENS, "ignore_eos": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}  # fmt: skip
AIPERF_COMPLETION = {
    "model": "tiny", "prompt": ["hi"], "stream": True, "max_tokens": OUTPUT_TOKENS,
    "min_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream_options": {"include_usage": True},
}  # fmt: skip
AIPERF_CHAT = {
    "model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True,
    "max_completion_tokens": OUTPUT_TOKENS, "stream_options": {"include_usage": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, VLLM_COMPLETION),
        (CHAT, VLLM_CHAT),
        (COMPLETIONS, GUIDELLM_COMPLETION),
        (CHAT, GUIDELLM_CHAT),
        (COMPLETIONS, AIPERF_COMPLETION),
        (CHAT, AIPERF_CHAT),
    ],
)
async def test_load_generators_count_each_token_once(path: str, body: dict[str, Any]) -> None:
    headers = {"Authorization": "Bearer x", "x-request-id": "bench-1", "X-Correlation-ID": "c"}
    async with over_http() as (d, client):
        assert (await client.get("/health")).status_code == 200
        d.decode.stepping.hold()
        texts, usages = [], []
        async with client.stream("POST", path, json=body, headers=headers) as response:
            async for kind, event in events(response):
                d.decode.stepping.allow(1)
                if kind == "message" and event["choices"]:
                    texts.append(_text_of(event["choices"][0]))
                elif kind == "message":
                    usages.append(event["usage"])
        d.decode.stepping.open()
    # One event a token, so that gaps between events are gaps between tokens.
    assert [len(text) for text in texts] == [1] * OUTPUT_TOKENS
    assert [u["completion_tokens"] for u in usages] == [OUTPUT_TOKENS]
    assert usages[0]["prompt_tokens"] > 0


def _text_of(choice: dict[str, Any]) -> str:
    text = choice["text"] if "text" in choice else choice["delta"].get("content")
    return text or ""


async def test_many_calls_at_once_each_get_their_own_tokens() -> None:
    limits = httpx2.Limits(max_connections=100)
    async with over_http() as (d, _):
        async with httpx2.AsyncClient(
            base_url=base_url(d), timeout=WAIT_S, limits=limits
        ) as client:
            bodies = [{"prompt": [2 + i, 40], "max_tokens": 5 + i % 7} for i in range(60)]
            calls = (client.post(COMPLETIONS, json=body) for body in bodies)
            answers = [response.json() for response in await asyncio.gather(*calls)]
        loads = await d.client.loads()
    for i, answer in enumerate(answers):
        expected = "".join(chr(ord("a") + (42 + i + k) % 26) for k in range(5 + i % 7))
        assert answer["choices"][0]["text"] == expected
    assert (loads.completed, loads.active, loads.waiting) == (60, 0, 0)
