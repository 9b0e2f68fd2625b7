"""Connections to the server that carry megabytes with no copy of our own.

redis-py opens each connection (URL, TLS, credentials, database); then this takes the transport
over, because its streams copy every value several times on the way (`python -m bench kv_store`
shows what that costs). One request has a pipe for itself; `Pipes` keeps a bounded number of them,
opens them when needed and drops broken ones.

States of a `Pipe`: idle; busy (a request is under way, or was cut off and can never be resumed);
lost.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, cast

from redis.asyncio.connection import AbstractConnection

from kv_store.resp import Command, ProtocolViolation, Reply, ReplyReader, encode

MakeConnection = Callable[[], AbstractConnection]

TURN_BYTES = 1 << 20  # sent or received before other tasks get their turn, about
SEND_BUFFER_BYTES = 1 << 20  # asked for; the kernel may grant less


class AnyPipe(Protocol):
    """To a server, or to all nodes of a Cluster."""

    @property
    def refused(self) -> bool:
        """See `Pipe`."""

    async def request(self, commands: Iterable[Command], value_max: int = 0) -> list[Reply]:
        """See `Pipe`."""


class AnyPipes(Protocol):
    """What gives such."""

    def borrow(self) -> AbstractAsyncContextManager[AnyPipe]:
        """See `Pipes`."""

    async def close(self) -> None:
        """See `Pipes`."""


class Pipe(asyncio.BufferedProtocol):
    """One connection. Build with `Pipe.open`."""

    def __init__(self, connection: AbstractConnection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._socket = _socket_below(transport)
        self._reader = ReplyReader()
        self._error: Exception | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._busy = False

    @classmethod
    async def open(cls, connection: AbstractConnection) -> Pipe:
        """Connect and log in. Raises what redis-py raises, `OSError` or `RedisError`."""
        pipe: Pipe | None = None
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            writer = connection._writer  # redis-py has no public name for it
            assert writer is not None
            # Ray's loops are uvloop's where that is installed, and its transports are no subclass.
            transport = cast(asyncio.Transport, writer.transport)
            pipe = cls(connection, transport)
            transport.set_protocol(pipe)
            return pipe
        finally:
            if pipe is None:
                await connection.disconnect(nowait=True)

    @property
    def idle(self) -> bool:
        """Whether a request can begin."""
        return not (self._busy or self._closed.done() or self._transport.is_closing())

    @property
    def refused(self) -> bool:
        """Whether a reply to the request that is under way is an error already."""
        return self._reader.refused

    @property
    def demoted(self) -> bool:
        """Whether the server has said that it only reads: it was the master once."""
        return self._reader.demoted

    async def request(self, commands: Iterable[Command], value_max: int = 0) -> list[Reply]:
        """Send all `commands`, then return all their replies. Memory behind them is not copied:
        it must not change until then.

        Values for which a command has no `into` are accepted up to `value_max` bytes.

        Raises `OSError` when the connection is lost. A request that was interrupted leaves the
        pipe busy for good.
        """
        if self._error is not None:
            raise self._error
        assert not self._busy
        self._busy = True
        self._reader.begin(value_max)
        sent = 0
        for buffer in encode(self._expecting(commands)):
            self._transport.write(buffer)
            sent += len(buffer)
            if sent >= TURN_BYTES:
                sent = 0
                await asyncio.sleep(0)
            await self._writable.wait()
            if self._error is not None:
                raise self._error
        if not self._reader.done:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._busy = False
        return self._reader.replies

    async def close(self) -> None:
        """Drop the connection, with whatever it still had to send. Idempotent."""
        self._transport.abort()
        await self._connection.disconnect(nowait=True)
        await self._closed

    def _expecting(self, commands: Iterable[Command]) -> Iterator[Command]:
        for command in commands:
            self._reader.expect(command.into)
            yield command

    # What asyncio calls.

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._reader.received(nbytes)
            self._drain()
        except ProtocolViolation as error:
            self._fail(error)
            self._transport.abort()
            return
        if self._reader.done:
            self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("the server closed the connection"))
        self._closed.set_result(None)
        if self._socket is not None:
            self._socket.close()

    def _drain(self) -> None:
        """Receive what more has come: cheaper than going back to the event loop for it."""
        budget = TURN_BYTES
        while self._socket is not None and budget > 0 and not self._reader.done:
            try:
                count = self._socket.recv_into(self._reader.buffer())
            except OSError:  # nothing there; or an end, which the transport meets as well
                return
            if count == 0:
                return
            self._reader.received(count)
            budget -= count

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._writable.set()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if self._error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(self._error)


def _socket_below(transport: asyncio.Transport) -> socket.socket | None:
    """A second handle of the transport's socket; None under TLS."""
    if transport.get_extra_info("ssl_object") is not None:
        return None
    handle = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    if handle.family == socket.AF_UNIX:  # TCP sizes its buffers itself, unless it is told
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return handle


class Pipes:
    """At most `size` pipes to one server; further borrowers wait."""

    def __init__(self, make_connection: MakeConnection, size: int) -> None:
        self._make_connection = make_connection
        self._places = asyncio.Semaphore(size)
        self._idle: list[Pipe] = []
        self._closed = False

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Pipe]:
        """A pipe of one's own. Raises `OSError` or `RedisError` where none can be opened."""
        async with self._places:
            pipe = await self._take()
            try:
                yield pipe
            finally:
                if pipe.demoted:
                    # Another server has taken its place: who connects anew finds that one.
                    await self._drop_idle()
                if pipe.idle and not (self._closed or pipe.demoted):
                    self._idle.append(pipe)
                else:
                    await pipe.close()

    async def close(self) -> None:
        """Close idle pipes now and borrowed ones when they come back. Idempotent."""
        self._closed = True
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _take(self) -> Pipe:
        while self._idle:
            pipe = self._idle.pop()
            if pipe.idle:
                return pipe
            await pipe.close()
        return await Pipe.open(self._make_connection())
