"""Push calls past gRPC's library: our client and server with each other and with gRPC's own."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Protocol

import grpc
import grpc.aio
import pytest

from eastwest import http2
from eastwest.clock import SystemClock
from eastwest.errors import (
    CorruptData,
    EastWestError,
    Incompatible,
    InvalidArgument,
    LeaseExpired,
    NotFound,
    Phase,
    StaleEpoch,
    Unavailable,
)
from eastwest.http2 import Kind
from eastwest.rpc import error_from_rpc, server_options
from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer import push_server
from kv_transfer.frame_codec import Header, encode
from kv_transfer.intake import CORRUPT_FRAMES_MAX
from kv_transfer.plan import Region
from kv_transfer.push_client import PushClient
from kv_transfer.push_server import PUSH_METHOD, PushServer
from kv_transfer.receiver import Receiver
from kv_transfer.service import KvTransferService
from tests.unit.kv_transfer.builders import (
    EPOCH,
    Receiving,
    RecordingEvents,
    a_memory,
    a_payload,
    an_opening,
)

WAIT_S = 20.0
REGION = Receiving.region
MESSAGE_BYTES = 1 << 12


def a_message(layer: int, transfer_id: str = "t1", *, epoch: int = EPOCH) -> bytes:
    region = Region(range(layer, layer + 1), REGION.blocks, REGION.heads)
    return encode(Header(transfer_id, epoch, 0, region), a_payload(region))


MESSAGES = [a_message(layer) for layer in REGION.layers]


@asynccontextmanager
async def a_server(*, idle_s: float = WAIT_S) -> AsyncIterator[tuple[PushServer, Receiver, str]]:
    """With transfer t1 open."""
    receiver = Receiver(a_memory(), RecordingEvents(), rank=0, epoch=EPOCH)
    receiver.open(an_opening())
    server = PushServer(receiver, SystemClock(), idle_s=idle_s, message_bytes=MESSAGE_BYTES)
    port = await server.start("127.0.0.1")
    yield server, receiver, f"127.0.0.1:{port}"
    await server.stop()


async def push(address: str, *messages: bytes) -> wire.PushReceipt:
    """By our client. Asserts that it leaves nothing behind."""
    client = PushClient(address)
    try:
        async with asyncio.timeout(WAIT_S), client.push(WAIT_S) as stream:
            for message in messages:
                await stream.write((message[:7], message[7:]))
            return await stream.finish()
    finally:
        await client.close()


async def push_by_grpc(
    address: str, *messages: bytes, method: str = PUSH_METHOD
) -> wire.PushReceipt:
    """By gRPC's own client. Raises typed errors."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(method)
        try:
            return wire.PushReceipt.FromString(await call(iter(messages), timeout=WAIT_S))
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None


class Send(Protocol):
    def __call__(self, address: str, *messages: bytes) -> Awaitable[wire.PushReceipt]: ...


clients = pytest.mark.parametrize("send", [push, push_by_grpc], ids=["ours", "gRPC's"])


@clients
async def test_frames_arrive(send: Send) -> None:
    async with a_server() as (_, receiver, address):
        receipt = await send(address, *MESSAGES, MESSAGES[0], b"noise", b"")
        assert receipt.accepted_frames == len(MESSAGES)
        assert (receipt.duplicate_frames, receipt.corrupt_frames) == (1, 2)
        assert await receiver.missing("t1") == []


@clients
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([a_message(0, "t9")], NotFound),
        ([MESSAGES[0], a_message(0, epoch=EPOCH - 1), MESSAGES[1]], StaleEpoch),
        ([b"noise"] * (CORRUPT_FRAMES_MAX + 1), CorruptData),
        ([bytes(MESSAGE_BYTES + 1), MESSAGES[0]], InvalidArgument),
    ],
    ids=["transfer", "epoch", "noise", "size"],
)
async def test_errors_come_back_as_they_were(
    send: Send, messages: list[bytes], expected: type[EastWestError]
) -> None:
    async with a_server() as (_, receiver, address):
        with pytest.raises(expected) as caught:
            await send(address, *messages)
        assert caught.value.message
        # The connection and the server are none the worse for it.
        await send(address, *MESSAGES)
        assert await receiver.missing("t1") == []


async def test_another_method_is_not_there() -> None:
    async with a_server() as (_, _, address):
        with pytest.raises(Incompatible):
            await push_by_grpc(address, b"", method="/eastwest.v1.KvTransfer/Commit")


async def test_calls_share_a_connection() -> None:
    async with a_server() as (_, receiver, address):
        client = PushClient(address)
        streams = [client.push(WAIT_S) for _ in MESSAGES]
        for stream, message in zip(streams, MESSAGES, strict=True):
            await stream.write((message,))
        receipts = await asyncio.gather(*(stream.finish() for stream in streams))
        assert [receipt.accepted_frames for receipt in receipts] == [1] * len(MESSAGES)
        assert await receiver.missing("t1") == []
        await client.close()
        with pytest.raises(Unavailable):
            await client.push(WAIT_S).write((MESSAGES[0],))


async def test_a_call_that_is_left_early_takes_no_other_with_it() -> None:
    async with a_server() as (_, receiver, address):
        client = PushClient(address)
        async with client.push(WAIT_S) as left:
            await left.write((MESSAGES[0],))
        async with client.push(WAIT_S) as stream:
            for message in MESSAGES:
                await stream.write((message,))
            receipt = await stream.finish()
        assert receipt.accepted_frames + receipt.duplicate_frames == len(MESSAGES)
        assert await receiver.missing("t1") == []
        await client.close()


async def test_messages_larger_than_any_window_pass() -> None:
    """gRPC's server opens with windows of 64 KiB; ours is sent more than its window at once."""
    noise = random.Random(0).randbytes(20 << 20)
    receiver = Receiver(a_memory(), RecordingEvents(), rank=0, epoch=EPOCH)
    server = grpc.aio.server(options=server_options(len(noise)))
    KvTransferService(receiver, None, SystemClock(), idle_s=WAIT_S).add_to(server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    assert (await push(address, noise, b"", noise)).corrupt_frames == 3
    await server.stop(None)
    ours = PushServer(receiver, SystemClock(), idle_s=WAIT_S, message_bytes=len(noise))
    port = await ours.start("127.0.0.1")
    for send in (push, push_by_grpc):
        assert (await send(f"127.0.0.1:{port}", noise, b"", noise)).corrupt_frames == 3
    await ours.stop()


async def test_a_cancelled_write_reads_its_message_no_more() -> None:
    """The receiver does not read, so the message cannot leave; then it does, and gets the rest."""
    release, drained, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    payload, received = bytearray(random.Random(0).randbytes(32 << 20)), bytearray()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http2.opening(streams=1) + http2.window_update(0, 1 << 30))
        settings = [(http2.Setting.INITIAL_WINDOW_SIZE, 1 << 30)]
        packed = b"".join(struct.pack("!HI", *pair) for pair in settings)
        writer.write(http2.frame(Kind.SETTINGS, 0, 0, packed))
        await release.wait()
        while data := await reader.read(1 << 20):
            received.extend(data)
            if not link.unsent:
                drained.set()
        writer.close()
        ended.set()

    server = await asyncio.start_server(slow, "127.0.0.1", 0, limit=1 << 16)
    client = PushClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    stream = client.push(WAIT_S)
    writing = asyncio.create_task(stream.write((payload,)))
    await asyncio.wait({writing}, timeout=0.2)
    assert not writing.done()
    writing.cancel()
    await asyncio.wait({writing})
    before = bytes(payload)
    payload[:] = bytes(len(payload))  # the blocks belong to somebody else
    link = await client.link()
    release.set()
    await asyncio.wait_for(drained.wait(), WAIT_S)
    await client.close()
    await asyncio.wait_for(ended.wait(), WAIT_S)
    server.close()
    await server.wait_closed()
    assert bytes(1 << 10) not in received
    # After the small frames with which a connection begins comes one as large as may be.
    for start in range(1 << 20, 1 << 24, 1 << 20):
        assert before[start : start + (1 << 10)] in received


async def test_a_silent_call_for_nothing_is_ended() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with (
        a_server(idle_s=0.05) as (_, _, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(PUSH_METHOD)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(nothing(), timeout=WAIT_S)
        assert isinstance(error_from_rpc(caught.value), LeaseExpired)


async def test_a_server_that_stops_ends_its_calls() -> None:
    async with a_server() as (server, _, address):
        client = PushClient(address)
        async with client.push(WAIT_S) as stream:
            await stream.write((MESSAGES[0],))
            await server.stop()
            with pytest.raises(Unavailable) as caught:
                await stream.finish()
            assert caught.value.phase is Phase.TRANSFER
        with pytest.raises(Unavailable):
            await client.push(WAIT_S).write((MESSAGES[0],))
        await client.close()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:1", "nonsense", "[::1]:1"])
async def test_an_address_that_nobody_listens_at_is_unavailable(address: str) -> None:
    with pytest.raises(Unavailable):
        await push(address, MESSAGES[0])


async def test_a_connection_on_which_nothing_comes_back_is_given_up() -> None:
    """As one is that a flipped bit in the length of a frame has put out of step."""
    connections: list[asyncio.Task[None]] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http2.opening(streams=9))
        while await reader.read(1 << 16):
            pass
        writer.close()
        await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.create_task(swallow(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    client = PushClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", idle_s=0.2)
    for tries in (1, 2):
        async with client.push(WAIT_S) as stream:
            await stream.write([MESSAGES[0]])
            with pytest.raises(Unavailable, match="silent"):
                await stream.finish()
        assert len(connections) == tries
    await client.close()
    await asyncio.gather(*connections)
    server.close()
    await server.wait_closed()


async def test_noise_costs_its_connection_only() -> None:
    rng = random.Random(1)
    async with a_server() as (_, receiver, address):
        host, port = address.split(":")
        for _ in range(50):
            reader, writer = await asyncio.open_connection(host, int(port))
            start = rng.choice((b"", http2.PREFACE, http2.PREFACE + http2.opening(streams=0)))
            writer.write(start + rng.randbytes(rng.randrange(2000)))
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), WAIT_S)
            writer.close()
        await push(address, *MESSAGES)
        assert await receiver.missing("t1") == []


async def test_a_client_that_asks_and_never_reads_is_cut_off() -> None:
    pings = http2.frame(Kind.PING, 0, 0, bytes(8)) * 10_000
    async with a_server() as (_, receiver, address):
        host, port = address.split(":")
        silent = socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        silent.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(silent, (host, int(port)))
        await loop.sock_sendall(silent, http2.PREFACE + http2.opening(streams=0))

        async def ask() -> None:
            for _ in range(100):  # more than the kernel keeps for a peer, and the server may
                await asyncio.wait_for(loop.sock_sendall(silent, pings), WAIT_S)

        with pytest.raises(ConnectionError):
            await ask()
        silent.close()
        await push(address, *MESSAGES)
        assert await receiver.missing("t1") == []


async def test_no_more_connections_are_taken_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_server, "CONNECTIONS_MAX", 3)
    async with a_server() as (_, receiver, address):
        host, port = address.split(":")
        kept = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        for reader, _writer in kept:
            assert await asyncio.wait_for(reader.read(1), WAIT_S)
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(1), WAIT_S) == b""
        writer.close()
        for reader, writer in kept:
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), WAIT_S)
            writer.close()
        await push(address, *MESSAGES)
        assert await receiver.missing("t1") == []
