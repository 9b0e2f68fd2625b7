"""A sender's connection to the KvTransfer service of one receiving rank.

Speaks gRPC and raises typed errors of the phase `transfer`; decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from eastwest.errors import InternalError, Phase, Unavailable
from eastwest.rpc import channel_options, error_from_rpc
from eastwest.v1 import kv_transfer_pb2 as wire

_METHOD = "/eastwest.v1.KvTransfer/"


class Peer:
    """One address. `slots` bounds the frames on the way to it, over all transfers.

    Made on the event loop that uses it; `close` ends every call.
    """

    def __init__(self, address: str, *, message_bytes: int, slots: int) -> None:
        self.slots = asyncio.Semaphore(slots)
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(message_bytes))
        self._push: grpc.aio.StreamUnaryMultiCallable[Any, Any] = self._channel.stream_unary(
            _METHOD + "Push",
            request_serializer=None,
            response_deserializer=wire.PushReceipt.FromString,
        )
        self._commit = self._channel.unary_unary(
            _METHOD + "Commit",
            request_serializer=wire.CommitRequest.SerializeToString,
            response_deserializer=wire.CommitReceipt.FromString,
        )
        self._abort = self._channel.unary_unary(
            _METHOD + "AbortTransfer",
            request_serializer=wire.AbortTransferRequest.SerializeToString,
            response_deserializer=wire.AbortTransferReceipt.FromString,
        )

    def push(self, timeout_s: float) -> PushStream:
        """A new stream of frames."""
        return PushStream(self._push, timeout_s)

    async def commit(self, request: wire.CommitRequest, timeout_s: float) -> wire.CommitReceipt:
        with _typed_errors():
            receipt: wire.CommitReceipt = await self._commit(request, timeout=timeout_s)
        return receipt

    async def abort(self, request: wire.AbortTransferRequest, timeout_s: float) -> None:
        with _typed_errors():
            await self._abort(request, timeout=timeout_s)

    async def close(self) -> None:
        await self._channel.close(None)


class PushStream:
    """One Push call. Leaving the context before `finish` has returned cancels it."""

    def __init__(
        self, method: grpc.aio.StreamUnaryMultiCallable[Any, Any], timeout_s: float
    ) -> None:
        self._call = method(None, timeout=timeout_s)

    async def __aenter__(self) -> PushStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call.cancel()

    async def write(self, frame: bytes) -> None:
        """Returns when the frame has left this process's queue: one is under way at a time.

        Raises what the receiver ended the call with; `Unavailable` where that is not known.
        """
        try:
            with _typed_errors():
                try:
                    await self._call.write(frame)
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    await self._call
        except InternalError as error:
            # gRPC may put its own complaint about the write in place of the receiver's status.
            message = f"the stream broke off: {error.message}"
            raise Unavailable(message, phase=Phase.TRANSFER) from error

    async def finish(self) -> wire.PushReceipt:
        """Say that there is no more; what the receiver made of it."""
        with _typed_errors():
            await self._call.done_writing()
            receipt: wire.PushReceipt = await self._call
        return receipt


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except grpc.aio.UsageError as error:
        raise Unavailable("the connection has been closed", phase=Phase.TRANSFER) from error
    except grpc.aio.AioRpcError as error:
        typed = error_from_rpc(error)
        typed.phase = typed.phase or Phase.TRANSFER
        raise typed from error
