"""The load of `bench.router`: closed-loop clients that speak OpenAI's streaming HTTP, or gRPC.

Made cheap, for it shares the machine with what it measures: a client is a socket of its own, and of
what comes it looks at when it came, how many events it holds, and at the last one, which says how
many tokens there were. Anything but a whole stream of the tokens that were asked for is an error.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eastwest.client import AsyncClient

_EVENT, _DONE = b"data: ", b"data: [DONE]"
_TAIL_BYTES = 4096
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What each request asks for. prompt_words: about as many tokens."""

    prompt_words: int
    output_tokens: int
    model: str = "simulated"

    def prompt(self, number: int) -> str:
        """Of the request of this number; all differ from their first word on."""
        words = (f"{number}", *(str(7 * i % 10) for i in range(self.prompt_words - 1)))
        return " ".join(words)

    def body(self, number: int) -> bytes:
        """As JSON."""
        asked: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt(number),
            "max_tokens": self.output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(asked).encode()


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it. events: messages that carried tokens, or so."""

    ttft_s: float
    total_s: float
    tokens: int
    events: int


@dataclass(frozen=True, slots=True)
class Load:
    """What a run gave. All rates are over the whole run."""

    seconds: float
    samples: Sequence[Sample]

    @property
    def tokens(self) -> int:
        return sum(sample.tokens for sample in self.samples)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def requests_per_s(self) -> float:
        return len(self.samples) / self.seconds

    @property
    def tokens_per_event(self) -> float:
        return self.tokens / sum(sample.events for sample in self.samples)

    @property
    def ttft_ms(self) -> float:
        """The median."""
        return 1e3 * statistics.median(sample.ttft_s for sample in self.samples)


class _Connection(asyncio.Protocol):
    """One client's socket, kept from request to request."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Sample] | None = None
        self._began = 0.0
        self._first = 0.0
        self._events = 0
        self._tail = b""
        self._status = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, path: str, body: bytes) -> Sample:
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._first, self._events, self._tail, self._status = 0.0, 0, b"", b""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._began = time.perf_counter()
        self._transport.write(head.encode() + body)
        return await self._done

    def data_received(self, data: bytes) -> None:
        done = self._done
        if done is None or done.done():
            return
        if not self._status:
            self._status = data.split(b"\r\n", 1)[0]
        events = data.count(_EVENT)
        if events and not self._first:
            self._first = time.perf_counter()
        self._events += events
        self._tail = data if len(data) >= _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]
        if not self._status.endswith(b" 200 OK"):
            done.set_exception(RuntimeError(f"{self._status!r}: {self._tail!r}"))
        elif b"0\r\n\r\n" in data[-7:]:
            self._finish(done)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RuntimeError(f"the connection ended: {self._tail!r}"))

    def _finish(self, done: asyncio.Future[Sample]) -> None:
        ended = time.perf_counter()
        tokens = _tokens(self._tail)
        if tokens is None:
            done.set_exception(RuntimeError(f"a stream has no usage: {self._tail!r}"))
            return
        # Two events are those of the usage and of the end.
        events = max(1, self._events - 2)
        sample = Sample(self._first - self._began, ended - self._began, tokens, events)
        done.set_result(sample)


def _tokens(tail: bytes) -> int | None:
    """What the last usage of a stream says."""
    at = tail.rfind(b'"completion_tokens":')
    if at < 0 or _DONE not in tail:
        return None
    digits = tail[at + len(b'"completion_tokens":') :].split(b",", 1)[0].split(b"}", 1)[0]
    return int(digits)


async def http_load(
    addresses: Sequence[str], shape: Shape, *, clients: int, requests: int, first: int = 0
) -> Load:
    """So many requests through so many clients, spread over `addresses` (``host:port``)."""
    loop, todo = asyncio.get_running_loop(), iter(range(first, first + requests))
    connections = []
    for i in range(clients):
        host, _, port = addresses[i % len(addresses)].rpartition(":")
        made = await loop.create_connection(lambda h=host: _Connection(h), host, int(port))  # type: ignore[misc]
        connections.append(made)
    samples: list[Sample] = []

    async def client(connection: _Connection) -> None:
        for number in todo:
            sample = await connection.ask("/v1/completions", shape.body(number))
            if sample.tokens != shape.output_tokens:
                raise RuntimeError(f"{sample.tokens} tokens came, not {shape.output_tokens}")
            samples.append(sample)

    try:
        return await _timed([client(connection) for _, connection in connections], samples)
    finally:
        for transport, _ in connections:
            transport.close()


async def grpc_load(
    addresses: Sequence[str], shape: Shape, *, clients: int, requests: int, first: int = 0
) -> Load:
    """Likewise over gRPC, by the client that we ship; a few connections for all."""
    todo = iter(range(first, first + requests))
    samples: list[Sample] = []

    async def client(connection: AsyncClient) -> None:
        for number in todo:
            began, first_s, tokens, events = time.perf_counter(), 0.0, 0, 0
            generation = connection.generate(
                shape.prompt(number),
                max_tokens=shape.output_tokens,
                ignore_eos=True,
                temperature=0.0,
            )
            async for chunk in generation:
                first_s = first_s or time.perf_counter() - began
                tokens += len(chunk.token_ids)
                events += 1
            if tokens != shape.output_tokens:
                raise RuntimeError(f"{tokens} tokens came, not {shape.output_tokens}")
            samples.append(Sample(first_s, time.perf_counter() - began, tokens, events))

    connections = [AsyncClient(address, timeout_s=LIMIT_S) for address in addresses]
    try:
        work = [client(connections[i % len(connections)]) for i in range(clients)]
        return await _timed(work, samples)
    finally:
        for connection in connections:
            await connection.close()


async def _timed(work: Sequence[Any], samples: list[Sample]) -> Load:
    began = time.perf_counter()
    async with asyncio.timeout(LIMIT_S):
        async with asyncio.TaskGroup() as group:
            for client in work:
                group.create_task(client)
    return Load(time.perf_counter() - began, samples)
