"""One call of `Worker.Control`, over a connection of its own.

Any gRPC server of the service can take it. This exists because it is the router's hottest path:
whatever has come since the event loop last looked is taken in at once, be it one message or a
hundred, where gRPC's Python library takes a thread, a system call and a turn of the loop for each.

    OPENING ──▶ OPEN ──▶ ENDED (`ended` says why)

A worker may send `UNREAD_BYTES` that are not taken in yet, so that one that is faster than this
router sends its steps together, late by a few milliseconds, and not one by one for seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

from google.protobuf.message import DecodeError
from hpack import Encoder

from eastwest import http2
from eastwest.errors import EastWestError, Incompatible, Unavailable
from eastwest.http2 import Code, Credit, Fields, Inbound, Kind, MessageBuffer, ProtocolError
from eastwest.rpc import CONTROL_MESSAGE_BYTES, error_from_trailers, keep_alive
from eastwest.v1 import worker_pb2 as worker

UNREAD_BYTES = 1 << 14
_METHOD = "/eastwest.v1.Worker/Control"
_STREAM = 1

Messages = list[worker.WorkerMessage]


class ControlStream(asyncio.BufferedProtocol):
    """`open`, then `first`, then `listen`; `write` at any time in between; `close` at the end.

    ended: fails with the one reason why the call has ended. Is the `Handler` of what comes.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[NoReturn] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._inbound = Inbound(self, preface=False)
        self._buffer: MessageBuffer[Any] = MessageBuffer(CONTROL_MESSAGE_BYTES, self._message)
        self._came: Messages = []
        self._credit, self._owed = Credit(UNREAD_BYTES), 0
        self._take: Callable[[Messages], None] | None = None
        # What a writer waits for: room in both windows and in the transport.
        self._windows = {0: http2.DEFAULT_WINDOW_BYTES, _STREAM: http2.DEFAULT_WINDOW_BYTES}
        self._stream_window = http2.DEFAULT_WINDOW_BYTES
        self._frame_bytes = http2.DEFAULT_FRAME_BYTES
        self._paused = False
        self._change = asyncio.Event()
        self._lost = asyncio.Event()

    # For its owner.

    async def open(self) -> None:
        """Dial, and begin the call. Raises `Unavailable`."""
        host, _, port = self._address.rpartition(":")
        try:
            await self._loop.create_connection(lambda: self, host.strip("[]"), int(port))
        except (OSError, ValueError) as error:
            raise Unavailable(f"{self._address} cannot be reached: {error}") from error
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", _METHOD),
            (":authority", self._address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        head = http2.frame(Kind.HEADERS, http2.END_HEADERS, _STREAM, Encoder().encode(fields))
        settings = http2.opening(streams=0, window_bytes=UNREAD_BYTES)
        self._post(http2.PREFACE + settings + head)

    async def first(self) -> worker.WorkerMessage:
        """The first message; what comes behind it waits for `listen`. Raises what `ended` says."""
        while not self._came:
            await self._changed()
        return self._came.pop(0)

    def listen(self, take: Callable[[Messages], None]) -> None:
        """Have `take` called with all messages that there are, in order, whenever there are some.
        What it raises ends the call."""
        self._take = take
        self._hand_over()

    async def write(self, message: worker.RouterMessage) -> None:
        """Returns when the system or its buffer has taken all of it. Raises what `ended` says."""
        data = message.SerializeToString()
        rest = memoryview(http2.message_prefix(len(data)) + data)
        while rest:
            room = 0 if self._paused else min(*self._windows.values(), self._frame_bytes)
            if self.ended.done() or room <= 0:
                await self._changed()
                continue
            piece, rest = rest[:room], rest[room:]
            for stream in self._windows:
                self._windows[stream] -= len(piece)
            self._post(http2.frame_head(Kind.DATA, 0, _STREAM, len(piece)) + bytes(piece))

    async def close(self) -> None:
        """End the call, and return when its connection is gone. Idempotent."""
        self._end(Unavailable("the connection has been closed"))
        if self._transport is not None:
            await self._lost.wait()

    async def _changed(self) -> None:
        if self.ended.done():
            self.ended.result()
        self._change.clear()
        await self._change.wait()
        if self.ended.done():
            self.ended.result()

    # Of the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        keep_alive(transport.get_extra_info("socket"))
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbound.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._inbound.filled(nbytes)
        except ProtocolError as error:
            self._end(Unavailable(f"{self._address} does not speak gRPC: {error}"))
        self._hand_over()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(Unavailable(f"{self._address} is gone: {exc or 'it ended the connection'}"))
        self._lost.set()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._change.set()

    # Of what comes.

    def on_settings(self, settings: dict[int, int]) -> None:
        self._frame_bytes = settings.get(http2.Setting.MAX_FRAME_SIZE, self._frame_bytes)
        window = settings.get(http2.Setting.INITIAL_WINDOW_SIZE, self._stream_window)
        self._windows[_STREAM] += window - self._stream_window
        self._stream_window = window
        self._change.set()
        self._post(http2.frame(Kind.SETTINGS, http2.ACK, 0))

    def on_headers(self, stream: int, fields: Fields, end: bool) -> None:
        if end:
            self._hand_over()
            self._end(error_from_trailers(fields) or Unavailable("the worker ended its stream"))

    def on_reset(self, stream: int, code: int) -> None:
        self._end(Unavailable(f"the stream was reset with code {code}"))

    def on_window(self, stream: int, increment: int) -> None:
        if stream in self._windows:
            self._windows[stream] += increment
            self._change.set()

    def on_ping(self, payload: bytes) -> None:
        self._post(http2.frame(Kind.PING, http2.ACK, 0, payload))

    def on_goaway(self, code: int) -> None:
        if code != Code.NO_ERROR:
            self._end(Unavailable(f"{self._address} ended the connection with code {code}"))

    def buffer(self, stream: int) -> MessageBuffer[Any] | None:
        return self._buffer if stream == _STREAM else None

    def on_error(self, stream: int, error: EastWestError) -> None:
        self._end(error)

    def on_data(self, stream: int, size: int, end: bool) -> None:
        self._owed += self._credit.took(size)

    def _message(self, data: memoryview) -> None:
        try:
            self._came.append(worker.WorkerMessage.FromString(bytes(data)))
        except DecodeError as error:
            raise Incompatible(f"{self._address} sent what is no message: {error}") from error

    def _hand_over(self) -> None:
        """Give what has come to whoever listens, and then let more come."""
        if self._came and self._take is None:
            self._change.set()
            return
        if self._came and self._take is not None and not self.ended.done():
            came, self._came = self._came, []
            try:
                self._take(came)
            except Exception as error:  # noqa: BLE001 - the owner is told
                self._end(error)
        if self._owed:
            owed, self._owed = self._owed, 0
            self._post(http2.window_update(0, owed) + http2.window_update(_STREAM, owed))

    def _post(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _end(self, error: Exception) -> None:
        if self.ended.done():
            return
        self._post(http2.frame(Kind.RST_STREAM, 0, _STREAM, Code.CANCEL.to_bytes(4)))
        self.ended.set_exception(error)
        self.ended.exception()  # it need not be asked for
        self._change.set()
        if self._transport is not None:
            # What a peer does not read is not waited for.
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()
