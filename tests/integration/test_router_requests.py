"""Requests through a real gRPC server and client; workers are simulated."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from eastwest import AsyncClient, Client
from eastwest.answers import Chunk, Completion
from eastwest.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Overloaded,
    Phase,
    TooLarge,
)
from eastwest.messages import Abort, Prefill, Reserve
from eastwest.testing.checkers import check_timing
from eastwest.types import FinishReason
from eastwest.v1 import inference_pb2 as inference
from tests.byte_tokenizer import END, ids_of
from tests.integration.deployment import (
    Deployment,
    a_config,
    a_deployment,
    babbles,
    says,
    served_model,
)


async def test_tokens_stream_as_they_come_and_the_completion_is_all_of_them() -> None:
    async with a_deployment(says("hello")) as d:
        d.decode.stepping.hold()
        generation = d.client.generate("hi", max_tokens=20)
        chunks = [await anext(generation)]
        assert chunks[0] == Chunk(ids_of("h"), "h")
        for _ in range(5):
            d.decode.stepping.allow(1)
            chunks.append(await anext(generation))
        completion = await generation
    assert [c.text for c in chunks] == ["h", "e", "l", "l", "o", ""]
    assert completion.text == "hello"
    assert completion.token_ids == (*ids_of("hello"), END)
    assert completion.finish_reason is FinishReason.STOP
    assert completion.matched_stop == END
    assert (completion.prefill_worker, completion.decode_worker) == ("p0", "d0")
    assert completion.usage.prompt_tokens == 2
    assert completion.usage.completion_tokens == 6
    assert completion.transfer_bytes == 2 * served_model().kv.bytes_per_token


async def test_the_parts_of_a_requests_timing_sum_to_their_totals() -> None:
    async with a_deployment() as d:
        completion = await d.client.generate("hi", max_tokens=5)
    timing = completion.timing
    assert timing.second is not None
    check_timing(timing, ttft_ns=timing.ttft.total_ns, second_ns=timing.second.total_ns)
    assert 0 < timing.ttft.total_ns - timing.ttft.delivery_ns <= timing.e2e_ns


async def test_one_token_is_prefilled_and_never_decoded() -> None:
    async with a_deployment() as d:
        completion = await d.client.generate((5, 6, 7), max_tokens=1)
    assert completion.token_ids == (babbles((5, 6, 7), 0),)
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.timing.second is None


async def test_workers_get_what_the_client_asked_for() -> None:
    async with a_deployment() as d:
        await d.client.generate((9, 8), temperature=0.5, seed=11, max_tokens=3, top_k=4)
        [reserve] = await d.decode.received(Reserve)
        [prefill] = await d.prefill.received(Prefill)
    assert reserve.prompt == prefill.prompt == (9, 8)
    assert reserve.sampling == prefill.sampling
    assert (reserve.sampling.temperature, reserve.sampling.seed) == (0.5, 11)
    assert (reserve.max_tokens, prefill.max_tokens) == (3, 3)
    assert prefill.ticket.worker_id == "d0"


async def test_an_absent_seed_is_drawn_once_for_both_workers() -> None:
    async with a_deployment() as d:
        await d.client.generate("hi", max_tokens=2)
        [reserve] = await d.decode.received(Reserve)
        [prefill] = await d.prefill.received(Prefill)
    assert reserve.sampling.seed is not None
    assert reserve.sampling.seed == prefill.sampling.seed


async def test_tenants_have_salts_of_their_own() -> None:
    async with a_deployment() as d:
        await d.client.generate("hi", max_tokens=2)
        async with AsyncClient(d.address, tenant="other") as other:
            await other.generate("hi", max_tokens=2)
        ours, theirs = await d.decode.received(Reserve, 2)
    assert ours.salt
    assert ours.salt != theirs.salt


async def test_without_streaming_only_the_completion_comes() -> None:
    async with a_deployment(says("hello")) as d, grpc.aio.insecure_channel(d.address) as channel:
        request = inference.GenerateRequest(text="hi", stream=False)
        responses = [r async for r in _raw(channel, request.SerializeToString())]
    parsed = [inference.GenerateResponse.FromString(r) for r in responses]
    assert [p.WhichOneof("response") for p in parsed] == ["complete"]
    assert parsed[0].complete.text == "hello"


async def test_a_stop_string_ends_the_request_on_its_workers_and_is_not_in_the_text() -> None:
    async with a_deployment(says("one two three four")) as d:
        d.decode.stepping.hold()
        generation = d.client.generate("hi", max_tokens=100, stop=" th")
        d.decode.stepping.allow(9)
        chunks = [chunk async for chunk in generation]
        completion = await generation
        await d.decode.received(Abort)
    assert completion.text == "one two" == "".join(c.text for c in chunks)
    assert completion.token_ids == ids_of("one two th")
    assert completion.matched_stop == " th"
    assert completion.finish_reason is FinishReason.STOP
    assert completion.usage.completion_tokens == 10
    assert [t for c in chunks for t in c.token_ids] == list(completion.token_ids)


async def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    async with a_deployment(says("one two")) as d:
        generation = d.client.generate("hi", stop="two more")
        chunks = [chunk async for chunk in generation]
        completion = await generation
    assert "".join(c.text for c in chunks) == completion.text == "one two"


async def test_half_a_character_is_never_sent() -> None:
    async with a_deployment(says("aé€😀")) as d:
        generation = d.client.generate("hi")
        texts = [chunk.text async for chunk in generation]
    assert "".join(texts) == "aé€😀"
    assert all("�" not in text for text in texts)


async def test_log_probabilities_come_where_asked_for() -> None:
    async with a_deployment() as d:
        generation = d.client.generate("hi", max_tokens=3, logprobs=2)
        chunks = [chunk async for chunk in generation]
        completion = await generation
    assert [t.token for t in completion.logprobs] == list(completion.token_ids)
    assert all(len(t.top) == 2 for t in completion.logprobs)
    assert tuple(t for c in chunks for t in c.logprobs) == completion.logprobs


async def test_fifty_requests_at_once_each_get_their_own_tokens() -> None:
    async with a_deployment() as d:
        prompts = [(2 + i, 40 + i % 7) for i in range(50)]
        completions = await asyncio.gather(
            *(d.client.generate(p, max_tokens=5 + i % 10).result() for i, p in enumerate(prompts))
        )
        loads = await d.client.loads()
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected = tuple(babbles(prompt, index) for index in range(5 + i % 10))
        assert completion.token_ids == expected
    assert (loads.completed, loads.active, loads.waiting) == (50, 0, 0)


async def test_a_client_that_lags_gets_several_tokens_in_a_chunk_and_misses_none() -> None:
    async with a_deployment() as d:
        generation = d.client.generate("hi", max_tokens=1000, logprobs=20)
        first = await anext(generation)
        # Nothing is read until the workers are through, which no client can hold up.
        await d.decode.freed()
        chunks = [first] + [chunk async for chunk in generation]
        completion = await generation
    assert tuple(t for c in chunks for t in c.token_ids) == completion.token_ids
    assert len(completion.token_ids) == 1000
    assert max(len(c.token_ids) for c in chunks) > 1


async def test_a_client_that_leaves_is_noticed_by_both_workers() -> None:
    async with a_deployment() as d:
        d.prefill.prefilling.hold()
        async with d.client.generate("hi") as generation:
            waiting = asyncio.create_task(anext(generation, None))
            await d.prefill.received(Prefill)
            waiting.cancel()
        await d.prefill.received(Abort)
        await d.decode.received(Abort)
        d.prefill.prefilling.open()


async def test_leaving_the_stream_early_cancels_the_request() -> None:
    async with a_deployment() as d:
        d.decode.stepping.hold()
        async with d.client.generate("hi") as generation:
            async for _ in generation:
                break
        await d.decode.received(Abort)
        d.decode.stepping.open()


async def test_cancelling_a_generation_says_so_and_ends_the_request() -> None:
    async with a_deployment() as d:
        d.decode.stepping.hold()
        generation = d.client.generate("hi")
        await anext(generation)
        generation.cancel()
        with pytest.raises(Cancelled, match="by this client"):
            await generation
        await d.decode.received(Abort)
        d.decode.stepping.open()


async def test_a_deadline_beyond_all_reason_is_no_deadline() -> None:
    async with a_deployment(says("hello")) as d:
        assert (await d.client.generate("hi", timeout_s=1e9)).text == "hello"


async def test_abort_ends_the_stream_with_cancelled() -> None:
    async with a_deployment() as d:
        d.decode.stepping.hold()
        generation = d.client.generate("hi", request_id="mine")
        await anext(generation)
        async with AsyncClient(d.address, tenant="other") as other:
            assert not await other.abort("mine")
        assert await d.client.abort("mine")
        with pytest.raises(Cancelled, match="aborted") as caught:
            await generation
        assert caught.value.phase is Phase.TRANSFER
        assert not await d.client.abort("mine")
        await d.decode.received(Abort)
        d.decode.stepping.open()


async def test_a_request_id_may_be_used_again_after_its_end_but_not_while_it_runs() -> None:
    async with a_deployment(says("hello")) as d:
        d.decode.stepping.hold()
        running = d.client.generate("hi", request_id="mine")
        await anext(running)
        with pytest.raises(InvalidArgument, match="'mine' is running"):
            await d.client.generate("hi", request_id="mine")
        async with AsyncClient(d.address, tenant="other") as other:
            theirs = other.generate("hi", request_id="mine")
            await anext(theirs)
            d.decode.stepping.open()
            assert (await theirs).request_id == "mine"
        assert (await running).request_id == "mine"
        assert (await d.client.generate("hi", request_id="mine")).text == "hello"


@pytest.mark.parametrize("phase", [Phase.RESERVATION, Phase.PREFILL, Phase.TRANSFER, Phase.DECODE])
async def test_a_passed_deadline_names_its_phase_and_frees_the_workers(phase: Phase) -> None:
    async with a_deployment() as d:
        d.decode.stepping.hold()
        match phase:
            case Phase.RESERVATION:
                d.decode.reserving.hold()
            case Phase.PREFILL:
                d.prefill.prefilling.hold()
            case Phase.DECODE:
                d.decode.stepping.allow(1)
        with pytest.raises(DeadlineExceeded) as caught:
            await d.client.generate("hi", timeout_s=1.0)
        assert caught.value.phase is phase
        await d.decode.received(Abort)
        for gate in (d.decode.reserving, d.prefill.prefilling, d.decode.stepping):
            gate.open()


async def test_overload_is_refused_early_with_a_hint() -> None:
    config = a_config(router={"queue_max": 1, "active_max": 1})
    async with a_deployment(config=config) as d:
        d.prefill.prefilling.hold()
        running = [asyncio.create_task(_result(d, i)) for i in range(2)]
        await d.prefill.received(Prefill)
        await _until_waiting(d, 1)
        with pytest.raises(Overloaded) as caught:
            await d.client.generate("hi")
        assert caught.value.status.retriable
        assert caught.value.retry_after_s is not None
        d.prefill.prefilling.open()
        await asyncio.gather(*running)


async def _until_waiting(d: Deployment, count: int) -> None:
    """Loads are asked for, not announced, so this asks until they say so."""
    async with asyncio.timeout(60):
        while (await d.client.loads()).waiting != count:
            pass


async def _result(d: Deployment, number: int) -> Completion:
    return await d.client.generate((5, 6 + number), max_tokens=2)


# What a hostile or careless client sends.


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x12\x02\xff\xfe", "UTF-8"),
        (b"\x0a\x02\xff\xfe", "UTF-8"),
        (b"\xff\xff\xff", "not a valid message"),
        (b"\x12\x02hi\xf2\x3f\x01x", "field number 1022"),
        (b"\x12\x02hi\x22\x04\xf2\x3f\x01x", "sampling_params has field number 1022"),
        (b"", "no input"),
    ],
)
async def test_malformed_requests_are_invalid_arguments_and_the_server_lives(
    data: bytes, what: str
) -> None:
    async with a_deployment(says("hello")) as d, grpc.aio.insecure_channel(d.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in _raw(channel, data)]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert what in (caught.value.details() or "")
        assert ("eastwest-code", "invalid_argument") in tuple(
            caught.value.trailing_metadata() or ()
        )
        assert (await d.client.generate("hi")).text == "hello"


async def test_a_malformed_unary_request_is_an_invalid_argument() -> None:
    async with a_deployment() as d, grpc.aio.insecure_channel(d.address) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        method = channel.unary_unary("/eastwest.v1.Inference/Abort")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"\x0a\x02\xff\xfe")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_size_limit_is_refused_and_the_server_lives() -> None:
    config = a_config(limits={"message_bytes": 10_000})
    async with a_deployment(says("hello"), config=config) as d:
        with pytest.raises(TooLarge):
            await d.client.generate("x" * 20_000)
        assert (await d.client.generate("hi")).text == "hello"


async def test_a_prompt_over_the_byte_limit_is_too_large() -> None:
    config = a_config(limits={"prompt_bytes": 100})
    async with a_deployment(config=config) as d:
        with pytest.raises(TooLarge, match="101 bytes; allowed: at most 100"):
            await d.client.generate("x" * 101)


async def test_a_prompt_beyond_the_context_names_both_numbers() -> None:
    async with a_deployment() as d:
        with pytest.raises(InvalidArgument, match=r"5000 tokens; allowed: .* 4096 tokens"):
            await d.client.generate("x" * 5000)


async def test_another_model_is_not_found() -> None:
    async with a_deployment() as d:
        with pytest.raises(NotFound, match="serves 'tiny'"):
            await d.client.generate("hi", model="other")


async def test_the_blocking_client_does_all_that_the_asynchronous_one_does() -> None:
    async with a_deployment(says("hello")) as d:
        await asyncio.to_thread(_use_blocking_client, d.address)


def _use_blocking_client(address: str) -> None:
    with Client(address, timeout_s=60.0) as client:
        client.wait_ready(30.0)
        generation = client.generate("hi")
        assert "".join(chunk.text for chunk in generation) == "hello"
        assert generation.completion is not None
        assert generation.completion.text == "hello"
        assert client.generate((5, 6)).result().text == "hello"
        assert client.chat([{"role": "user", "content": "hi"}]).result().text == "hello"
        with client.generate("hi") as left_early:
            next(left_early)
        assert not client.abort("unknown")
        assert client.model_info().name == "tiny"
        assert [w.worker_id for w in client.server_info().workers] == ["p0", "d0"]
        assert client.loads().active in (0, 1)
        with pytest.raises(InvalidArgument, match="temperature is -1"):
            client.generate("hi", temperature=-1).result()


def _raw(channel: grpc.aio.Channel, data: bytes) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
    method = channel.unary_stream("/eastwest.v1.Inference/Generate")
    return method(data)
