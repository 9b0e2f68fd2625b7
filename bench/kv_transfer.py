"""KV from one process to another over gRPC on loopback, against a raw TCP socket.

256 MiB in the shape of SmolLM2-135M in bfloat16, 16-token blocks. A sender and a receiver process,
each kept to one core. A push is everything that serving does: blocks read from one paged KV, cut
into frames, checked, sent, checked again, written into another paged KV, committed. The raw
socket sends one buffer and receives it into another of the same size, and checks nothing. Each
round does every kind once; figures are medians of the rounds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio
import numpy as np
from xxhash import xxh3_64_intdigest

from eastwest.clock import SystemClock, ns
from eastwest.config import KVConfig
from eastwest.heap import keep_freed_memory
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import RankEndpoint, Ticket
from eastwest.rpc import channel_options, server_options
from eastwest.testing.kv_memory import ArrayKVMemory
from eastwest.types import SampledToken
from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer.frame_codec import Header, decode, encode, message_bytes
from kv_transfer.ledger import Ledger, Owner, OwnerKind
from kv_transfer.plan import Region
from kv_transfer.receiver import Receiver, TransferStats
from kv_transfer.sender import KvSender
from kv_transfer.service import KvTransferService

SPEC = KVSpec(num_layers=30, num_kv_heads=3, key_dim=64, value_dim=64, dtype="bfloat16")
CONFIG = KVConfig()
BLOCK_BYTES = SPEC.slice_bytes(CONFIG.block_tokens, SPEC.num_layers, SPEC.num_kv_heads)
NUM_BLOCKS = -(-(256 << 20) // BLOCK_BYTES)
TOTAL_BYTES = NUM_BLOCKS * BLOCK_BYTES
FRAME_BYTES = CONFIG.frame_bytes
GOAL = 0.7
LIMIT_S = 60.0
HEADER = Header("bench", 1, 0, Region(range(2), range(85), range(3)))


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this benchmark; see the module docstring."""
    context = multiprocessing.get_context("spawn")
    results, sender_results = context.Pipe(duplex=False)
    to_receiver, to_sender = context.Pipe()
    cores = sorted(os.sched_getaffinity(0))
    receiver = context.Process(target=_receive, args=(to_sender, cores[-1]))
    rounds = 3 if quick else 11
    sender = context.Process(target=_send, args=(to_receiver, sender_results, cores[0], rounds))
    for process in (receiver, sender):
        process.start()
    # The parent's copies, so that a process that dies is noticed at the other end.
    for connection in (sender_results, to_receiver, to_sender):
        connection.close()
    seconds: dict[str, float] = results.recv()
    for process in (sender, receiver):
        process.join()
    return [
        _row("push, 256 MiB, checksums on", "raw TCP socket", seconds, "push", "tcp", GOAL),
        _row("push, 256 MiB, checksums on", "bytes over gRPC", seconds, "push", "raw"),
        _row("frames over gRPC, our serializer", "protobuf bytes", seconds, "ours", "protobuf"),
        _row("frames encoded and decoded", "protobuf bytes", seconds, "codec", "protobuf codec"),
    ]


def _row(
    metric: str,
    against: str,
    seconds: dict[str, float],
    ours: str,
    theirs: str,
    goal: float | None = None,
) -> dict[str, Any]:
    ratio = seconds[theirs] / seconds[ours]
    return {
        "metric": metric,
        "value": TOTAL_BYTES / seconds[ours] / 2**30,
        "unit": "GiB/s",
        "against": against,
        "against_value": TOTAL_BYTES / seconds[theirs] / 2**30,
        "ratio": ratio,
        "goal": goal,
        "met": None if goal is None else ratio >= goal,
    }


def _keep_to(core: int) -> None:
    os.sched_setaffinity(0, {core})
    keep_freed_memory()


def _a_memory() -> ArrayKVMemory:
    shard = shard_of(SPEC, ParallelLayout(), 0)
    memory = ArrayKVMemory(SPEC, shard, NUM_BLOCKS, CONFIG.block_tokens)
    memory.fill(1)
    return memory


# The receiving process.


class _Owner:
    """Gives up every transfer as soon as it is committed."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def on_progress(self, transfer_id: str) -> None:
        pass

    def on_committed(
        self, transfer_id: str, first_token: SampledToken, finished: bool, stats: TransferStats
    ) -> None:
        self.ledger.close(Owner(OwnerKind.RESERVATION, transfer_id))

    def on_aborted(self, transfer_id: str, reason: str) -> None:
        raise AssertionError(reason)


def _receive(sender: Connection, core: int) -> None:
    _keep_to(core)
    asyncio.run(_serve(sender))


async def _serve(sender: Connection) -> None:
    owner, clock = _Owner(), SystemClock()
    receiver = Receiver(_a_memory(), owner.ledger, owner, epoch=1, lease_ns=ns(LIMIT_S))
    server = grpc.aio.server(options=server_options(message_bytes(FRAME_BYTES)))
    KvTransferService(receiver, clock, idle_s=LIMIT_S).add_to(server)
    server.add_generic_rpc_handlers((_bench_handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender.send((port, listener.getsockname()[1]))
        memory = memoryview(bytearray(TOTAL_BYTES))
        while (what := await asyncio.to_thread(sender.recv)) != "stop":
            if what == "tcp":
                await asyncio.to_thread(_take_tcp, listener, memory)
                continue
            blocks, lease = range(NUM_BLOCKS), clock.now_ns() + ns(LIMIT_S)
            reservation = Owner(OwnerKind.RESERVATION, what)
            owner.ledger.open(reservation, blocks, lease_until_ns=lease)
            receiver.open(what, reservation, blocks=blocks, first_block=0, num_blocks=NUM_BLOCKS)
            sender.send(what)
    await server.stop(None)


def _take_tcp(listener: socket.socket, memory: memoryview) -> None:
    connection, _ = listener.accept()
    with connection:
        received = 0
        while received < TOTAL_BYTES:
            received += connection.recv_into(memory[received : received + FRAME_BYTES])
        connection.sendall(b"!")


def _bench_handler() -> grpc.GenericRpcHandler:
    """Streams of bytes that are looked at in three ways and then forgotten."""

    def frame(message: bytes) -> None:
        assert decode(message).intact()

    def protobuf(message: bytes) -> None:
        received = wire.KvFrame.FromString(message)
        assert xxh3_64_intdigest(received.payload) == received.header.checksum

    def handler(look: Callable[[bytes], object]) -> grpc.RpcMethodHandler[Any, Any]:
        async def take(messages: AsyncIterator[bytes], context: object) -> bytes:
            async for message in messages:
                look(message)
            return b""

        return grpc.stream_unary_rpc_method_handler(take)

    methods = {"raw": handler(len), "ours": handler(frame), "protobuf": handler(protobuf)}
    return grpc.method_handlers_generic_handler("bench.Bytes", methods)


# The sending process.


def _send(receiver: Connection, results: Connection, core: int, rounds: int) -> None:
    _keep_to(core)
    results.send(asyncio.run(_measure(receiver, rounds)))


async def _measure(receiver: Connection, rounds: int) -> dict[str, float]:
    """Median seconds of each kind; the first round warms up."""
    port, tcp_port = receiver.recv()
    seconds: dict[str, list[float]] = defaultdict(list)
    source = memoryview(np.random.default_rng(0).bytes(TOTAL_BYTES))
    options = channel_options(message_bytes(FRAME_BYTES))
    sender = KvSender(_a_memory(), ParallelLayout(), 0, CONFIG, SystemClock(), fingerprint="bench")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        for number in range(rounds + 1):
            receiver.send("tcp")
            seconds["tcp"].append(_send_tcp(tcp_port, source))
            receiver.send(f"t{number}")
            seconds["push"].append(await _push(sender, receiver.recv(), port))
            for kind, make in _MESSAGES.items():
                seconds[kind].append(await _stream(channel, kind, make(source)))
            seconds["codec"].append(_timed(lambda: _decode_all(source)))
            seconds["protobuf codec"].append(_timed(lambda: _parse_all(source)))
    await sender.close()
    receiver.send("stop")
    return {kind: statistics.median(values[1:]) for kind, values in seconds.items()}


def _send_tcp(port: int, source: memoryview) -> float:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begin = time.perf_counter()
        for frame in _cut(source):
            connection.sendall(frame)
        connection.recv(1)
        return time.perf_counter() - begin


async def _push(sender: KvSender, transfer_id: str, port: int) -> float:
    ticket = Ticket(
        transfer_id=transfer_id,
        worker_id="receiver",
        epoch=1,
        endpoints=(RankEndpoint(0, f"127.0.0.1:{port}"),),
        layout=ParallelLayout(),
        kv=SPEC,
        fingerprint="bench",
        block_tokens=CONFIG.block_tokens,
        first_block=0,
        num_blocks=NUM_BLOCKS,
        lease_s=LIMIT_S,
    )
    deadline_ns = SystemClock().now_ns() + ns(LIMIT_S)
    begin = time.perf_counter()
    push = sender.begin(ticket, range(NUM_BLOCKS), deadline_ns=deadline_ns)
    push.ready(NUM_BLOCKS)
    stats = await push.finish(SampledToken(1), finished=False)
    assert stats.bytes == TOTAL_BYTES
    return time.perf_counter() - begin


async def _stream(channel: grpc.aio.Channel, kind: str, messages: Iterator[bytes]) -> float:
    method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(
        f"/bench.Bytes/{kind}"
    )
    begin = time.perf_counter()
    call = method(timeout=LIMIT_S)
    for message in messages:
        await call.write(message)
    await call.done_writing()
    await call
    return time.perf_counter() - begin


def _cut(source: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(source), FRAME_BYTES):
        yield source[start : start + FRAME_BYTES]


def _raw(source: memoryview) -> Iterator[bytes]:
    return map(bytes, _cut(source))


def _ours(source: memoryview) -> Iterator[bytes]:
    return (encode(HEADER, frame) for frame in _cut(source))


def _protobuf(source: memoryview) -> Iterator[bytes]:
    for frame in _cut(source):
        header = wire.FrameHeader(transfer_id="bench", checksum=xxh3_64_intdigest(frame))
        yield wire.KvFrame(header=header, payload=bytes(frame)).SerializeToString()


_MESSAGES = {"raw": _raw, "ours": _ours, "protobuf": _protobuf}


def _decode_all(source: memoryview) -> None:
    for message in _ours(source):
        assert decode(message).intact()


def _parse_all(source: memoryview) -> None:
    for message in _protobuf(source):
        frame = wire.KvFrame.FromString(message)
        assert xxh3_64_intdigest(frame.payload) == frame.header.checksum


def _timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
