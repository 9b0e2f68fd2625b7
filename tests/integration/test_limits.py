"""Limits on what one client may send and hold open, at the router's own port and over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from eastwest.errors import Overloaded, Phase
from eastwest.messages import Reserve
from tests.integration.deployment import a_config, a_deployment, says
from tests.integration.http_front import COMPLETIONS, WAIT_S, http_config, over_http

MODEL_INFO = "/eastwest.v1.Inference/GetModelInfo"


@pytest.mark.parametrize(("size", "taken"), [(500, True), (3000, False), (1 << 20, False)])
async def test_metadata_over_the_limit_is_refused(size: int, taken: bool) -> None:
    config = a_config(limits={"metadata_bytes": 2048})
    async with a_deployment(config=config) as d, grpc.aio.insecure_channel(d.address) as channel:
        call: Any = channel.unary_unary(MODEL_INFO)
        refused = None
        try:
            await call(b"", metadata=(("x-padding", "x" * size),))
        except grpc.aio.AioRpcError as error:
            refused = error.code()
        assert refused is (None if taken else grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert await d.client.model_info()


async def test_headers_over_the_limit_are_refused_over_http() -> None:
    config = http_config(limits={"metadata_bytes": 2048})
    async with over_http(says("hello"), config=config) as (_, client):
        padded = {"x-padding": "x" * 3000}
        refused = await client.post(COMPLETIONS, json={"prompt": "hi"}, headers=padded)
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "too_large"
        assert (await client.post(COMPLETIONS, json={"prompt": "hi"})).is_success


async def test_a_client_has_so_many_streams_over_both_fronts_together() -> None:
    config = http_config(limits={"client_streams": 2})
    async with over_http(says("hello"), config=config) as (d, client):
        d.prefill.prefilling.hold()
        overt = asyncio.ensure_future(d.client.generate("hi").result())
        await d.decode.received(Reserve)
        other = asyncio.create_task(client.post(COMPLETIONS, json={"prompt": "hi"}))
        await d.decode.received(Reserve, 2)
        with pytest.raises(Overloaded, match="2 calls open; allowed: at most") as caught:
            await d.client.generate("hi")
        assert caught.value.phase is Phase.ADMISSION
        refused = await client.post(COMPLETIONS, json={"prompt": "hi"})
        assert refused.status_code == 429
        assert (await d.client.loads()).active == 2
        d.prefill.prefilling.open()
        assert (await overt).text == "hello"
        assert (await other).is_success
        assert (await d.client.generate("hi")).text == "hello"


async def test_calls_that_say_nothing_are_bounded_too() -> None:
    config = a_config(router={"queue_max": 1, "active_max": 1})
    async with a_deployment(config=config) as d, grpc.aio.insecure_channel(d.address) as channel:
        silent: list[Any] = [channel.stream_unary(MODEL_INFO)() for _ in range(12)]
        waiting = {asyncio.ensure_future(call.code()) for call in silent}
        async with asyncio.timeout(WAIT_S):
            while len(waiting) > 8:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                codes = {task.result() for task in done}
                assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for call in silent:
            call.cancel()
