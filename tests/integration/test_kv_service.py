"""The KvTransfer port against clients that are not ours: typed statuses, and it goes on serving."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from eastwest.layout import ParallelLayout
from eastwest.rpc import CODE_KEY
from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer.frame_codec import Header, encode, encode_in_place
from kv_transfer.intake import CORRUPT_FRAMES_MAX
from kv_transfer.plan import Region, tokens_of
from tests.integration.kv_pair import (
    BLOCK_TOKENS,
    EPOCH,
    NUM_TOKENS,
    SPEC,
    TOKEN,
    WAIT_S,
    Pair,
    Side,
    a_pair,
)

ONE_BLOCK = Region(range(1), range(1), range(2))


def open_push(
    channel: grpc.aio.Channel, requests: AsyncIterator[bytes] | None = None
) -> grpc.aio.StreamUnaryCall[bytes, bytes]:
    method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(
        "/eastwest.v1.KvTransfer/Push"
    )
    return method(requests, timeout=WAIT_S)


class RawClient:
    """Sends any bytes to any method."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def push(self, *messages: bytes) -> wire.PushReceipt:
        async def requests() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        receipt = await open_push(self._channel, requests())
        return wire.PushReceipt.FromString(receipt)

    async def call(self, name: str, request: bytes) -> bytes:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/eastwest.v1.KvTransfer/{name}"
        )
        answer: bytes = await method(request, timeout=WAIT_S)
        return answer


@asynccontextmanager
async def a_raw_client(pair: Pair) -> AsyncIterator[RawClient]:
    """Ends by asserting that an honest transfer still works."""
    async with grpc.aio.insecure_channel(pair.target.address) as channel:
        yield RawClient(channel)
    await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)


def a_message(region: Region = ONE_BLOCK, transfer_id: str = "t1") -> bytes:
    tokens = len(tokens_of(region.blocks, BLOCK_TOKENS, NUM_TOKENS))
    payload = bytes(SPEC.slice_bytes(tokens, len(region.layers), len(region.heads)))
    return encode(Header(transfer_id, EPOCH, 0, region), payload)


def refusal(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> tuple[grpc.StatusCode, object]:
    metadata = dict(tuple(pair) for pair in error.value.trailing_metadata() or ())
    return error.value.code(), metadata.get(CODE_KEY)


async def test_random_bytes_are_counted_and_harm_nobody() -> None:
    rng = random.Random(5)
    async with a_pair() as pair, a_raw_client(pair) as client:
        ticket = pair.reserve()
        noise = [rng.randbytes(rng.randrange(200)) for _ in range(CORRUPT_FRAMES_MAX)]
        receipt = await client.push(*noise, a_message(), a_message())
        assert receipt.corrupt_frames == CORRUPT_FRAMES_MAX
        assert (receipt.accepted_frames, receipt.duplicate_frames) == (1, 1)
        pair.cancel(ticket)


async def test_too_much_noise_ends_the_stream() -> None:
    async with a_pair() as pair, a_raw_client(pair) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.push(*[b"noise"] * (CORRUPT_FRAMES_MAX + 1))
        assert refusal(caught) == (grpc.StatusCode.DATA_LOSS, "corrupt_data")


async def test_a_frame_over_the_size_limit_is_refused() -> None:
    async with a_pair() as pair, a_raw_client(pair) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.push(bytes(1 << 20))
        assert refusal(caught) == (grpc.StatusCode.RESOURCE_EXHAUSTED, None)


async def test_a_frame_for_no_transfer_is_not_found() -> None:
    async with a_pair() as pair, a_raw_client(pair) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.push(a_message(transfer_id="t77"))
        assert refusal(caught) == (grpc.StatusCode.NOT_FOUND, "not_found")


async def test_a_frame_that_says_it_is_in_place_is_refused_where_nobody_may_write() -> None:
    header = Header("t1", EPOCH, 0, ONE_BLOCK, in_place=True)
    async with a_pair() as pair, a_raw_client(pair) as client:
        ticket = pair.reserve()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.push(encode_in_place(header, 0))
        assert refusal(caught) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_argument")
        assert pair.target.untouched
        pair.cancel(ticket)


async def test_a_last_block_that_claims_to_be_full_is_refused() -> None:
    last = Region(range(1), range(5, 6), range(2))
    payload = bytes(SPEC.slice_bytes(BLOCK_TOKENS, 1, 2))
    async with a_pair() as pair, a_raw_client(pair) as client:
        ticket = pair.reserve()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.push(encode(Header("t1", EPOCH, 0, last), payload))
        assert refusal(caught) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_argument")
        assert "2048 bytes; allowed: the 1280" in (caught.value.details() or "")
        assert pair.target.untouched
        pair.cancel(ticket)


@pytest.mark.parametrize("method", ["Commit", "AbortTransfer"])
async def test_a_rank_that_does_not_lead_says_who_takes_commits(method: str) -> None:
    requests = {
        "Commit": wire.CommitRequest(
            transfer_id="t1", epoch=EPOCH, first_token={"token": TOKEN.token}
        ),
        "AbortTransfer": wire.AbortTransferRequest(transfer_id="t1", epoch=EPOCH),
    }
    async with a_pair(dst=Side(ParallelLayout(tp=2))) as pair:
        ticket = pair.reserve()
        async with grpc.aio.insecure_channel(pair.target.addresses[1]) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await RawClient(channel).call(method, requests[method].SerializeToString())
        assert refusal(caught) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_argument")
        assert "the replica's leader" in (caught.value.details() or "")
        pair.cancel(ticket)


@pytest.mark.parametrize("method", ["Commit", "AbortTransfer"])
async def test_requests_that_are_no_protobuf_are_invalid(method: str) -> None:
    async with a_pair() as pair, a_raw_client(pair) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.call(method, b"\xff\xff\xff")
        assert refusal(caught) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_argument")


async def test_a_commit_without_a_token_is_invalid() -> None:
    async with a_pair() as pair, a_raw_client(pair) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.call("Commit", b"")
        assert refusal(caught) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_argument")


async def test_an_empty_abort_is_of_another_incarnation() -> None:
    async with a_pair() as pair, a_raw_client(pair) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.call("AbortTransfer", b"")
        assert refusal(caught) == (grpc.StatusCode.FAILED_PRECONDITION, "stale_epoch")


async def test_a_commit_names_what_is_missing_and_may_be_repeated() -> None:
    async with a_pair() as pair, a_raw_client(pair) as client:
        pair.reserve()
        request = wire.CommitRequest(transfer_id="t1", epoch=EPOCH)
        request.first_token.token = TOKEN.token
        await client.push(a_message(ONE_BLOCK))
        refused = wire.CommitReceipt.FromString(
            await client.call("Commit", request.SerializeToString())
        )
        assert not refused.committed
        assert sum(m.layer_count * m.block_count * m.head_count for m in refused.missing) == 46
        for layer in range(4):
            one = range(layer, layer + 1)
            halves = (Region(one, blocks, range(2)) for blocks in (range(3), range(3, 6)))
            await client.push(*map(a_message, halves))
        for _ in range(2):
            answer = await client.call("Commit", request.SerializeToString())
            assert wire.CommitReceipt.FromString(answer).committed


async def test_a_silent_stream_without_a_transfer_is_ended() -> None:
    async with a_pair(idle_s=0.01) as pair, a_raw_client(pair):
        async with grpc.aio.insecure_channel(pair.target.address) as channel:
            call = open_push(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
        assert refusal(caught) == (grpc.StatusCode.ABORTED, "lease_expired")


async def test_a_silent_stream_lives_as_long_as_its_transfer() -> None:
    asked = asyncio.Event()
    async with a_pair(idle_s=0.01) as pair, a_raw_client(pair):
        ticket = pair.reserve()
        (receiver,) = pair.target.receivers
        is_open = receiver.is_open

        def watched(transfer_id: str) -> bool:
            asked.set()
            return is_open(transfer_id)

        receiver.is_open = watched  # type: ignore[method-assign]
        async with grpc.aio.insecure_channel(pair.target.address) as channel:
            call = open_push(channel)
            await call.write(a_message())
            await asked.wait()
            assert not call.done()
            pair.cancel(ticket)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
        assert refusal(caught) == (grpc.StatusCode.ABORTED, "lease_expired")
