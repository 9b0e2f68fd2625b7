"""Serves the Push calls of one rank, and nothing else, at the speed of the socket.

Any gRPC client can call it. It exists beside the service of `kv_transfer.service` because gRPC's
Python library copies each message three times between socket and handler, which costs more than
receiving it: here a frame is received into the buffer from which it is checked and written.
"""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import grpc
from hpack import Encoder

from eastwest import http2
from eastwest.clock import Clock
from eastwest.errors import EastWestError, Incompatible, Unavailable
from eastwest.http2 import Code, Credit, Fields, Inbound, Kind, MessageBuffer, ProtocolError
from eastwest.rpc import error_metadata, keep_alive
from kv_transfer.intake import FrameIntake
from kv_transfer.landing import Landing
from kv_transfer.receiver import Receiver

PUSH_METHOD = "/eastwest.v1.KvTransfer/Push"
# Calls at once on one connection; each has a buffer for one message.
STREAMS_MAX = 256
CONNECTIONS_MAX = 1024
# Answers that wait for one client. All that it is due at once takes less.
UNREAD_BYTES_MAX = 1 << 20
_CONTENT = ("content-type", "application/grpc")


class PushServer:
    """Hands frames of up to `message_bytes` to `receiver`, on the event loop that starts it.

    A call that brings nothing for `idle_s` is ended, unless its transfer is open.
    """

    def __init__(
        self, receiver: Receiver, clock: Clock, *, idle_s: float, message_bytes: int
    ) -> None:
        self.idle_s = idle_s
        self.message_bytes = message_bytes
        self._receiver = receiver
        self._clock = clock
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; the port. Raises OSError where it is taken."""
        loop = asyncio.get_running_loop()
        # In two steps, so that who is cancelled meanwhile leaves no socket behind.
        self._server = await loop.create_server(
            lambda: _Connection(self, self._connections), host, port, start_serving=False
        )
        await self._server.start_serving()
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """End every call with `Unavailable`, and listen no more. Idempotent."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.shut(Unavailable("the receiving rank is stopping"))
            await self._server.wait_closed()

    def intake(self) -> FrameIntake:
        return FrameIntake(self._receiver, self._clock)


class _Call:
    """One stream that has begun and not ended."""

    def __init__(self, server: PushServer) -> None:
        intake = self.intake = server.intake()
        self.buffer = MessageBuffer(server.message_bytes, intake.take, intake.place, intake.placed)
        self.credit = Credit()
        self.timer: asyncio.TimerHandle | None = None


class _Connection(asyncio.BufferedProtocol):
    """One client's. Is the `Handler` of what it sends."""

    def __init__(self, server: PushServer, connections: set[_Connection]) -> None:
        self._server = server
        self._connections = connections
        self._inbound = Inbound(self, preface=True)
        self._encoder = Encoder()
        self._credit = Credit()
        self._calls: dict[int, _Call] = {}
        self._last = 0  # the highest stream that has begun
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if len(self._connections) >= CONNECTIONS_MAX:
            transport.abort()
            return
        keep_alive(transport.get_extra_info("socket"))
        self._connections.add(self)
        self._send(http2.opening(streams=STREAMS_MAX))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbound.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._transport.is_closing():
            return
        try:
            self._inbound.filled(nbytes)
        except ProtocolError:
            self._goaway(Code.PROTOCOL_ERROR)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        for stream in list(self._calls):
            self._forget(stream)

    def shut(self, error: EastWestError) -> None:
        """End every call with `error`, and the connection."""
        for stream in list(self._calls):
            self.on_error(stream, error)
        self._goaway(Code.NO_ERROR)

    def _send(self, data: bytes) -> None:
        """Write, to a client that reads: one that only asks is cut off."""
        if not self._transport.is_closing():
            self._transport.write(data)
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self._transport.abort()

    def on_settings(self, settings: dict[int, int]) -> None:
        # What is sent back is far smaller than any window or frame that a peer may set.
        self._send(http2.frame(Kind.SETTINGS, http2.ACK, 0))

    def on_headers(self, stream: int, fields: Fields, end: bool) -> None:
        if stream in self._calls:
            if not end:
                raise ProtocolError("headers in mid-stream")
            self._finish(stream)
            return
        if stream <= self._last or not stream % 2:
            raise ProtocolError("a stream that cannot begin")
        if len(self._calls) >= STREAMS_MAX:
            raise ProtocolError("more streams than were allowed")
        self._last = stream
        call = self._calls[stream] = _Call(self._server)
        path = dict(fields).get(":path", "")
        if path != PUSH_METHOD:
            error = Incompatible(f"method {path!r} is not here; allowed: {PUSH_METHOD}")
            self._refuse(stream, grpc.StatusCode.UNIMPLEMENTED, error)
            return
        self._watch(stream, call)
        if end:
            self._finish(stream)

    def on_reset(self, stream: int, code: int) -> None:
        self._forget(stream)

    def on_window(self, stream: int, increment: int) -> None:
        pass

    def on_ping(self, payload: bytes) -> None:
        self._send(http2.frame(Kind.PING, http2.ACK, 0, payload))

    def on_goaway(self, code: int) -> None:
        pass  # the client closes the connection when its calls have ended

    def buffer(self, stream: int) -> MessageBuffer[Landing] | None:
        call = self._calls.get(stream)
        return None if call is None else call.buffer

    def on_error(self, stream: int, error: EastWestError) -> None:
        self._refuse(stream, grpc.StatusCode[error.status.grpc], error)

    def on_data(self, stream: int, size: int, end: bool) -> None:
        if back := self._credit.took(size):
            self._send(http2.window_update(0, back))
        call = self._calls.get(stream)
        if call is None:
            return
        if end:
            self._finish(stream)
        elif back := call.credit.took(size):
            self._send(http2.window_update(stream, back))

    def _watch(self, stream: int, call: _Call) -> None:
        """End the call if it is silent for too long."""
        idle_s = self._server.idle_s

        def look() -> None:
            try:
                call.intake.check_alive(idle_s)
            except EastWestError as error:
                self.on_error(stream, error)
            else:
                self._watch(stream, call)

        call.timer = asyncio.get_running_loop().call_later(idle_s, look)

    def _finish(self, stream: int) -> None:
        """The client has no more: answer the receipt."""
        receipt = self._calls[stream].intake.receipt.SerializeToString()
        self._forget(stream)
        data = http2.message_prefix(len(receipt)) + receipt
        self._send(
            self._fields(stream, [(":status", "200"), _CONTENT])
            + http2.frame(Kind.DATA, 0, stream, data)
            + self._fields(stream, [("grpc-status", "0")], http2.END_STREAM)
        )

    def _refuse(self, stream: int, status: grpc.StatusCode, error: EastWestError) -> None:
        self._forget(stream)
        fields = [
            (":status", "200"),
            _CONTENT,
            ("grpc-status", str(status.value[0])),
            ("grpc-message", quote(error.message[:1024], safe=" !#$&'()*+,/:;=?@[]{}<>|\"")),
            *error_metadata(error),
        ]
        # The client need not send the rest of what it has.
        self._send(
            self._fields(stream, fields, http2.END_STREAM) + http2.reset(stream, Code.NO_ERROR)
        )

    def _fields(self, stream: int, fields: Fields, flags: int = 0) -> bytes:
        block = self._encoder.encode(fields)
        return http2.frame(Kind.HEADERS, flags | http2.END_HEADERS, stream, block)

    def _forget(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        if call is not None and call.timer is not None:
            call.timer.cancel()

    def _goaway(self, code: Code) -> None:
        payload = self._last.to_bytes(4) + code.to_bytes(4)
        self._send(http2.frame(Kind.GOAWAY, 0, 0, payload))
        self._transport.close()
