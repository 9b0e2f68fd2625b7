"""The gRPC face of a `Receiver`: the `KvTransfer` service of one rank.

Frames reach the handler as the bytes that came in, so that protobuf never touches a payload.
Errors end a call with their typed status; damaged frames are only counted, up to a bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from eastwest.clock import Clock
from eastwest.errors import CorruptData, EastWestError, InvalidArgument, LeaseExpired
from eastwest.rpc import abort_with
from eastwest.v1 import kv_transfer_pb2 as wire
from eastwest.wire import token_from_wire
from kv_transfer import frame_codec
from kv_transfer.receiver import FrameResult, Receiver

SERVICE = "eastwest.v1.KvTransfer"
# A connection that damages so many frames of one stream is not worth repeating them on.
CORRUPT_FRAMES_MAX = 64

Context = grpc.aio.ServicerContext[Any, Any]
RequestT = TypeVar("RequestT", bound=Message)


class KvTransferService:
    """Serves `receiver` on the event loop that the worker runs it on.

    A Push stream that brings nothing for `idle_s` is ended, unless its transfer is open.
    """

    def __init__(self, receiver: Receiver, clock: Clock, *, idle_s: float) -> None:
        self._receiver = receiver
        self._clock = clock
        self._idle_s = idle_s

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service; called once, before the server starts."""
        handlers = {
            "Push": grpc.stream_unary_rpc_method_handler(
                self._push, response_serializer=wire.PushReceipt.SerializeToString
            ),
            "Commit": _unary(wire.CommitRequest, self._commit),
            "AbortTransfer": _unary(wire.AbortTransferRequest, self._abort),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _push(self, messages: AsyncIterator[bytes], context: Context) -> wire.PushReceipt:
        stream = _Stream(self._receiver, self._clock)
        reading = asyncio.create_task(stream.read(messages))
        try:
            seen = 0
            while not (await asyncio.wait({reading}, timeout=self._idle_s))[0]:
                if stream.frames == seen and not self._receiver.is_open(stream.transfer_id):
                    raise LeaseExpired(f"a push stream was silent for {self._idle_s} s")
                seen = stream.frames
            await reading
        except EastWestError as error:
            await abort_with(context, error)
        finally:
            reading.cancel()
            await asyncio.wait({reading})
        return stream.receipt

    def _commit(self, request: wire.CommitRequest) -> wire.CommitReceipt:
        if not request.HasField("first_token"):
            raise InvalidArgument("a commit has no first token; allowed: exactly one")
        missing = self._receiver.commit(
            request.transfer_id,
            request.epoch,
            token_from_wire(request.first_token),
            finished=request.finished,
            now_ns=self._clock.now_ns(),
        )
        return wire.CommitReceipt(
            committed=not missing,
            missing=[
                wire.FrameSlice(
                    layer_start=region.layers.start,
                    layer_count=len(region.layers),
                    block_start=region.blocks.start,
                    block_count=len(region.blocks),
                    head_start=region.heads.start,
                    head_count=len(region.heads),
                )
                for region in missing
            ],
        )

    def _abort(self, request: wire.AbortTransferRequest) -> wire.AbortTransferReceipt:
        self._receiver.abort(request.transfer_id, request.epoch, "the sender gave up")
        return wire.AbortTransferReceipt()


class _Stream:
    """One Push call: hands its frames to the receiver and counts them."""

    def __init__(self, receiver: Receiver, clock: Clock) -> None:
        self._receiver = receiver
        self._clock = clock
        self.receipt = wire.PushReceipt()
        self.transfer_id = ""
        self.frames = 0

    async def read(self, messages: AsyncIterator[bytes]) -> None:
        """Until the sender has no more; raises what ends the call."""
        async for message in messages:
            self._take(message)
            if self.receipt.corrupt_frames > CORRUPT_FRAMES_MAX:
                raise CorruptData(
                    f"more than {CORRUPT_FRAMES_MAX} frames of one stream were damaged"
                )

    def _take(self, message: bytes) -> None:
        self.frames += 1
        try:
            frame = frame_codec.decode(message)
        except CorruptData:
            self.receipt.corrupt_frames += 1
            return
        match self._receiver.accept(frame, self._clock.now_ns()):
            case FrameResult.ACCEPTED:
                self.transfer_id = frame.header.transfer_id
                self.receipt.accepted_frames += 1
                self.receipt.accepted_bytes += frame.payload.nbytes
            case FrameResult.DUPLICATE:
                self.receipt.duplicate_frames += 1
            case FrameResult.CORRUPT:
                self.receipt.corrupt_frames += 1


def _unary(
    request_type: type[RequestT], method: Callable[[RequestT], Message]
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that answers malformed requests and typed errors with their status."""

    async def call(message: bytes, context: Context) -> bytes:
        try:
            request = request_type()
            request.ParseFromString(message)
            return method(request).SerializeToString()
        except DecodeError:
            await abort_with(context, InvalidArgument("the request is not valid protobuf"))
        except EastWestError as error:
            await abort_with(context, error)

    return grpc.unary_unary_rpc_method_handler(call)
