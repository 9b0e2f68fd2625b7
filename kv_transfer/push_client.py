"""Push calls to one address, at the speed of the socket.

Any gRPC server of the KvTransfer service can take them. This exists because gRPC's Python library
copies each message before it sends it; here a message goes to the socket from where it lies, in
pieces, as soon as the socket takes it: mostly before the call that sends it returns.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, TypeVar

from hpack import Encoder

from eastwest import http2
from eastwest.errors import (
    EastWestError,
    Incompatible,
    InternalError,
    InvalidArgument,
    Phase,
    Unavailable,
)
from eastwest.http2 import Code, Fields, Inbound, Kind, MessageBuffer, ProtocolError
from eastwest.rpc import error_from_trailers
from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer.dial import connect
from kv_transfer.frame_codec import Message
from kv_transfer.parts import Parts
from kv_transfer.push_server import PUSH_METHOD

IDLE_S = 30.0
_RECEIPT_BYTES_MAX = 1 << 16
_PARTS_MAX = 256  # of one system call; systems allow 1024
T = TypeVar("T")


class PushClient:
    """Calls to one address, over one connection at a time, made when it is needed.

    idle_s: where a message is not taken, or a receipt not given, for so long, the connection is
    broken: what is on it may have been damaged beyond what a receiver can answer.
    """

    def __init__(self, address: str, *, idle_s: float = IDLE_S) -> None:
        self._address = address
        self._idle_s = idle_s
        self._link: _Link | None = None
        self._making = asyncio.Lock()
        self._closed = False

    def push(self, timeout_s: float) -> PushStream:
        """A new stream of frames, which the receiver need not keep for longer than that."""
        return PushStream(self, timeout_s)

    async def link(self) -> _Link:
        """The connection, which is made where there is none. Raises `Unavailable`."""
        async with self._making:
            if self._closed:
                raise Unavailable("the connection has been closed", phase=Phase.TRANSFER)
            if self._link is not None and self._link.broken is not None:
                self._link.close()
                self._link = None
            if self._link is None:
                self._link = _Link(await connect(self._address), self._address)
            return self._link

    async def in_time(self, step: Awaitable[T]) -> T:
        """A step of a call, within `idle_s`; else `Unavailable`, also for all other calls."""
        try:
            async with asyncio.timeout(self._idle_s):
                return await step
        except TimeoutError:
            error = Unavailable(f"{self._address} was silent for {self._idle_s:g} s")
            if self._link is not None:
                self._link.break_off(error)
            raise error from None

    def distrust(self, error: EastWestError) -> None:
        """The receiver made no sense of a call: what came before on the connection is damaged."""
        if self._link is not None:
            self._link.break_off(Unavailable(f"{self._address} refused a call: {error.message}"))

    async def close(self) -> None:
        """End every call, and allow no more. Idempotent."""
        self._closed = True
        async with self._making:
            if self._link is not None:
                self._link.close()
                self._link = None


class PushStream:
    """One Push call. Leaving the context before `finish` has returned cancels it."""

    def __init__(self, client: PushClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._call: _Call | None = None

    async def __aenter__(self) -> PushStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._call is not None:
            self._call.cancel()
        if isinstance(error, (Incompatible, InternalError, InvalidArgument)):
            self._client.distrust(error)

    async def write(self, message: Message) -> None:
        """Returns when the system has taken it; other tasks get a turn before.

        Raises what the receiver ended the call with; `Unavailable` where that is not known.
        Cancelled, it leaves nothing behind that reads `message`.
        """
        call = await self._begun()
        await self._client.in_time(call.send(message))
        await asyncio.sleep(0)

    async def finish(self) -> wire.PushReceipt:
        """Say that there is no more; what the receiver made of it."""
        call = await self._begun()
        return await self._client.in_time(call.finish())

    async def _begun(self) -> _Call:
        if self._call is None:
            link = await self._client.in_time(self._client.link())
            self._call = link.begin(self._timeout_s)
        return self._call


class _Call:
    """One stream of a link. result: the receipt, or the error that ended the call."""

    def __init__(self, link: _Link, stream: int) -> None:
        self.stream = stream
        self.window = 0
        self.receipt = wire.PushReceipt()
        self.buffer: MessageBuffer[Any] = MessageBuffer(_RECEIPT_BYTES_MAX, self._received)
        self.result: asyncio.Future[wire.PushReceipt] = asyncio.get_running_loop().create_future()
        self._link = link

    async def send(self, message: Message) -> None:
        """One message, in as many frames as the receiver's windows ask for."""
        size = sum(len(part) for part in message)
        rest = Parts([memoryview(http2.message_prefix(size)), *(memoryview(p) for p in message)])
        while rest.size:
            count = await self._link.allowance(self, rest.size)
            head = http2.frame_head(Kind.DATA, 0, self.stream, count)
            out = Parts([memoryview(head), *rest.take(count)])
            await self._link.send(out)

    async def finish(self) -> wire.PushReceipt:
        if not self.result.done():
            self._link.post(http2.frame(Kind.DATA, http2.END_STREAM, self.stream))
        return await asyncio.shield(self.result)

    def end(self, error: EastWestError | None) -> None:
        """The call has ended; None for well."""
        if self.result.done():
            return
        if error is None:
            self.result.set_result(self.receipt)
        else:
            error.phase = error.phase or Phase.TRANSFER
            self.result.set_exception(error)
            self.result.exception()  # it need not be asked for

    def cancel(self) -> None:
        self._link.cancel(self)

    def _received(self, message: memoryview) -> None:
        self.receipt.ParseFromString(bytes(message))


class _Link:
    """One connection. Is the `Handler` of what comes.

    broken: why it cannot be used any more.
    """

    def __init__(self, connection: socket.socket, address: str) -> None:
        self.broken: EastWestError | None = None
        self._socket = connection
        self._address = address
        self._inbound = Inbound(self, preface=False)
        self._encoder = Encoder()
        self._streams = itertools.count(1, 2)
        self._calls: dict[int, _Call] = {}
        self._window = http2.DEFAULT_WINDOW_BYTES
        self._stream_window = http2.DEFAULT_WINDOW_BYTES
        self._frame_bytes = http2.DEFAULT_FRAME_BYTES
        self._more = asyncio.Event()  # a window has grown, or a call has ended
        # Frames on their way out: of each call one at a time, besides small ones.
        self._out: deque[Parts] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._readable)
        self.post(http2.PREFACE + http2.opening(streams=0))

    @property
    def unsent(self) -> int:
        """Frames that the system has not taken yet."""
        return len(self._out)

    def begin(self, timeout_s: float) -> _Call:
        call = _Call(self, next(self._streams))
        if self.broken is not None:
            raise self.broken
        call.window = self._stream_window
        self._calls[call.stream] = call
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", PUSH_METHOD),
            (":authority", self._address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{max(1, min(round(timeout_s * 1000), 99_999_999))}m"),
        ]
        block = self._encoder.encode(fields)
        self.post(http2.frame(Kind.HEADERS, http2.END_HEADERS, call.stream, block))
        return call

    async def allowance(self, call: _Call, wanted: int) -> int:
        """Take up to `wanted` bytes from the windows, at least one. Raises what ended the call."""
        while not call.result.done():
            count = min(wanted, self._window, call.window, self._frame_bytes)
            if count > 0:
                self._window -= count
                call.window -= count
                return count
            self._more.clear()
            await self._more.wait()
        call.result.result()
        raise InternalError("the receiver ended a push that was not finished", phase=Phase.TRANSFER)

    async def send(self, frame: Parts) -> None:
        """Until the system has taken all of it, or the connection is broken, which its calls are
        told."""
        self._post(frame)
        if frame.size and self.broken is None:
            frame.sent = self._loop.create_future()
            try:
                await frame.sent
            finally:
                # The rest of a frame that has begun must follow, whatever becomes of its place.
                frame.detach()

    def post(self, frame: bytes) -> None:
        """Send a small frame as soon as may be."""
        self._post(Parts([memoryview(frame)]))

    def cancel(self, call: _Call) -> None:
        if not call.result.done():
            if self.broken is None:
                self.post(http2.reset(call.stream, Code.CANCEL))
            call.end(Unavailable("the call was cancelled"))
        self._calls.pop(call.stream, None)

    def close(self) -> None:
        self.break_off(Unavailable("the connection has been closed"))
        self._socket.close()

    def on_settings(self, settings: dict[int, int]) -> None:
        self._frame_bytes = settings.get(http2.Setting.MAX_FRAME_SIZE, self._frame_bytes)
        window = settings.get(http2.Setting.INITIAL_WINDOW_SIZE, self._stream_window)
        for call in self._calls.values():
            call.window += window - self._stream_window
        self._stream_window = window
        self._more.set()
        self.post(http2.frame(Kind.SETTINGS, http2.ACK, 0))

    def on_headers(self, stream: int, fields: Fields, end: bool) -> None:
        call = self._calls.get(stream)
        if call is not None and end:
            call.end(error_from_trailers(fields))
            self._more.set()

    def on_reset(self, stream: int, code: int) -> None:
        call = self._calls.get(stream)
        if call is not None:
            call.end(Unavailable(f"the stream was reset with code {code}"))
            self._more.set()

    def on_window(self, stream: int, increment: int) -> None:
        if stream in self._calls:
            self._calls[stream].window += increment
        elif not stream:
            self._window += increment
        self._more.set()

    def on_ping(self, payload: bytes) -> None:
        self.post(http2.frame(Kind.PING, http2.ACK, 0, payload))

    def on_goaway(self, code: int) -> None:
        self.break_off(Unavailable(f"{self._address} ended the connection with code {code}"))

    def buffer(self, stream: int) -> MessageBuffer[Any] | None:
        call = self._calls.get(stream)
        return None if call is None else call.buffer

    def on_error(self, stream: int, error: EastWestError) -> None:
        call = self._calls.get(stream)
        if call is not None:
            call.end(error)

    def on_data(self, stream: int, size: int, end: bool) -> None:
        pass  # receipts are far smaller than the windows that the opening has set

    def _post(self, frame: Parts) -> None:
        if self.broken is None and (self._out or not self._put(frame)):
            if not self._out:
                self._loop.add_writer(self._socket, self._writable)
            self._out.append(frame)

    def _writable(self) -> None:
        while self._out and self._put(self._out[0]):
            frame = self._out.popleft()
            if frame.sent is not None and not frame.sent.done():
                frame.sent.set_result(None)
        if not self._out and self.broken is None:
            self._loop.remove_writer(self._socket)

    def _put(self, frame: Parts) -> bool:
        """Give the socket what it takes; whether that was all."""
        try:
            while frame.size:
                frame.take(self._socket.sendmsg(frame.parts[:_PARTS_MAX]))
        except BlockingIOError:
            return False
        except OSError as error:
            self.break_off(Unavailable(f"{self._address} is gone: {error}"))
        return True

    def _readable(self) -> None:
        try:
            count = self._socket.recv_into(self._inbound.room())
            if not count:
                raise ConnectionResetError("it ended the connection")
            self._inbound.filled(count)
        except BlockingIOError:
            pass
        except (OSError, ProtocolError) as error:
            self.break_off(Unavailable(f"{self._address} is gone: {error}"))

    def break_off(self, error: EastWestError) -> None:
        """Use the connection no more; its calls end with `error`. Idempotent."""
        if self.broken is not None:
            return
        error.phase = Phase.TRANSFER
        self.broken = error
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        for call in self._calls.values():
            call.end(error)
        while self._out:
            sent = self._out.popleft().sent
            if sent is not None and not sent.done():
                sent.set_result(None)  # what became of the frame, the call says
        self._more.set()
