"""KV from one process to another on one host, by each transport, against raw limits and peers.

256 MiB in the shape of SmolLM2-135M in bfloat16. A sender and a receiver process, each kept to one
core (`bench.kv_pair`). NIXL, where it is installed, uses what ``UCX_TLS`` says, shared memory
unless that is set. A transfer is everything that serving does but the commit: blocks read from
one paged KV, cut into frames, checked, sent, checked again, in the blocks of another paged KV. The
raw socket, the plain copy and the peers move bytes of the same size and check nothing; copy and
hash alone is what the sender of shared memory has to do, as one bare loop on its core. Each round
does every kind once; figures are medians of the rounds, after one to warm up.

Scattered: blocks in random order on both sides, of which one head of three is sent, as one rank of
TP3 feeds TP1. Blocks of 512 tokens make pieces of 64 KiB, those of 16 tokens pieces of 2 KiB.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from bench.kv_pair import SHAPES, TOTAL_BYTES, Source, keep_to, receive
from bench.kv_peers import KINDS, SETTINGS, Peer
from eastwest.messages import Transport
from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer.frame_codec import Header, decode, encode
from kv_transfer.plan import Region

_CODEC_FRAME_BYTES = 1 << 20
_HEADER = Header("bench", 1, 0, Region(range(2), range(85), range(3)))
Seconds = dict[str, float | None]


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this benchmark; see the module docstring."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("spawn")
    available = os.sched_getaffinity(0)
    cores = min(available), max(available)
    commands, theirs = context.Pipe()
    receiver = context.Process(target=receive, args=(theirs, cores[1]))
    receiver.start()
    # The parent's copy, so that a process that dies is noticed at the other end.
    theirs.close()
    peers = {
        "mooncake": Peer("mooncake", "mooncake_tcp.py", cores),
        "nixl": Peer("nixl", "nixl_ucx.py", cores),
    }
    keep_to(cores[0])
    try:
        seconds = asyncio.run(_measure(Source(commands), peers, 3 if quick else 9))
    finally:
        for peer in peers.values():
            peer.close()
        os.sched_setaffinity(0, available)
    receiver.join()
    return _rows(seconds)


async def _measure(source: Source, peers: dict[str, Peer], rounds: int) -> Seconds:
    """Median seconds of each kind; None for what is absent."""
    taken: dict[str, list[float | None]] = defaultdict(list)
    data = memoryview(np.random.default_rng(0).bytes(TOTAL_BYTES))
    for _ in range(rounds + 1):
        taken["tcp"].append(source.tcp())
        taken["memcpy"].append(source.memcpy())
        taken["copy and hash"].append(source.copy_and_hash())
        for transport in (Transport.GRPC, Transport.SHARED_MEMORY, Transport.NIXL):
            for shape in SHAPES:
                taken[f"{transport} {shape}"].append(await source.push(shape, transport))
        for name, peer in peers.items():
            for kind in KINDS:
                taken[f"peer {name} {kind}"].append(peer.seconds(kind))
        taken["codec"].append(_timed(lambda: _decode_all(data)))
        taken["protobuf"].append(_timed(lambda: _parse_all(data)))
    await source.close()
    assert all(len(values) == rounds + 1 for values in taken.values()), "two kinds share a name"
    measured = {kind: [v for v in values[1:] if v is not None] for kind, values in taken.items()}
    return {kind: statistics.median(v) if v else None for kind, v in measured.items()}


def _rows(seconds: Seconds) -> list[dict[str, Any]]:
    def row(
        metric: str, ours: str, against: str, theirs: str, goal: float | None = None
    ) -> dict[str, Any]:
        own, other = seconds[ours], seconds[theirs]
        ratio = None if own is None or other is None else other / own
        return {
            "metric": metric,
            "value": _rate(own),
            "unit": "GiB/s",
            "against": against,
            "against_value": _rate(other),
            "ratio": ratio,
            "goal": goal,
            "met": None if goal is None or ratio is None else ratio >= goal,
        }

    grpc, shared, nixl = Transport.GRPC, Transport.SHARED_MEMORY, Transport.NIXL
    rows = [
        row("gRPC", f"{grpc} contiguous", "raw TCP socket", "tcp", 0.85),
        row("gRPC", f"{grpc} contiguous", "Mooncake TCP", "peer mooncake contiguous", 1.0),
        row(
            "gRPC, 64 KiB", f"{grpc} 64 KiB pieces", "Mooncake TCP", "peer mooncake scattered", 1.0
        ),
        row("shared memory", f"{shared} contiguous", "memcpy", "memcpy", 0.8),
        row("shared memory", f"{shared} contiguous", "copy and hash alone", "copy and hash"),
        row("copy and hash alone", "copy and hash", "memcpy", "memcpy"),
        row("shared memory", f"{shared} contiguous", "NIXL UCX", "peer nixl contiguous", 1.0),
        row(
            "shared memory, 64 KiB",
            f"{shared} 64 KiB pieces",
            "NIXL UCX",
            "peer nixl scattered",
            1.0,
        ),
        row("NIXL", f"{nixl} contiguous", "memcpy", "memcpy"),
        row("NIXL", f"{nixl} contiguous", "NIXL UCX, unchecked", "peer nixl contiguous"),
        row("NIXL, 64 KiB", f"{nixl} 64 KiB pieces", "NIXL UCX, unchecked", "peer nixl scattered"),
    ]
    for transport, name in ((grpc, "gRPC"), (shared, "shared memory"), (nixl, "NIXL")):
        whole = f"{transport} contiguous"
        rows += [
            row(f"{name}, 64 KiB", f"{transport} 64 KiB pieces", "contiguous", whole, 0.5),
            row(f"{name}, 2 KiB", f"{transport} 2 KiB pieces", "contiguous", whole),
        ]
    return [*rows, row("frames encoded and decoded", "codec", "protobuf bytes", "protobuf")]


def _rate(seconds: float | None) -> float | None:
    """In GiB/s; None for what is absent."""
    return None if seconds is None else TOTAL_BYTES / seconds / 2**30


def _decode_all(source: memoryview) -> None:
    for start in range(0, len(source), _CODEC_FRAME_BYTES):
        message = encode(_HEADER, source[start : start + _CODEC_FRAME_BYTES])
        assert decode(message).intact()


def _parse_all(source: memoryview) -> None:
    for start in range(0, len(source), _CODEC_FRAME_BYTES):
        payload = source[start : start + _CODEC_FRAME_BYTES]
        header = wire.FrameHeader(transfer_id="bench", checksum=xxh3_64_intdigest(payload))
        frame = wire.KvFrame(header=header, payload=bytes(payload))
        frame = wire.KvFrame.FromString(frame.SerializeToString())
        assert xxh3_64_intdigest(frame.payload) == frame.header.checksum


def _timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
