"""A sender's connection to the KvTransfer service of one receiving rank.

Speaks gRPC and raises typed errors of the phase `transfer`; decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio

from eastwest.errors import ErrorCode, Phase, TransferFailed, Unavailable
from eastwest.rpc import channel_options, error_from_rpc
from eastwest.v1 import kv_transfer_pb2 as wire
from eastwest.wire.sealed import seal, unseal
from kv_transfer.push_client import PushClient, PushStream

_Call = grpc.aio.UnaryUnaryMultiCallable[Any, bytes]
_METHOD = "/eastwest.v1.KvTransfer/"
# Whatever is wrong with a call between two workers is not the client's doing: it may go better
# elsewhere, or when tried again.
_NOT_THE_CLIENTS = {
    ErrorCode.INVALID_ARGUMENT,
    ErrorCode.NOT_FOUND,
    ErrorCode.TOO_LARGE,
    ErrorCode.INCOMPATIBLE,
    ErrorCode.INTERNAL,
}


class Peer:
    """One address. `slots` bounds the frames on the way to it, over all transfers; idle_s: see
    `PushClient`.

    Made on the event loop that uses it; `close` ends every call.
    """

    def __init__(self, address: str, *, message_bytes: int, slots: int, idle_s: float) -> None:
        self.slots = asyncio.Semaphore(slots)
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(message_bytes))
        self._frames = PushClient(address, idle_s=idle_s)
        self._commit: _Call = self._channel.unary_unary(
            _METHOD + "Commit",
            request_serializer=seal,
        )
        self._abort: _Call = self._channel.unary_unary(
            _METHOD + "AbortTransfer",
            request_serializer=seal,
        )

    def push(self, timeout_s: float) -> PushStream:
        """A new stream of frames."""
        return self._frames.push(timeout_s)

    async def commit(self, request: wire.CommitRequest, timeout_s: float) -> wire.CommitReceipt:
        with _typed_errors():
            receipt = await self._commit(request, timeout=timeout_s)
            return unseal(wire.CommitReceipt, receipt)

    async def abort(self, request: wire.AbortTransferRequest, timeout_s: float) -> None:
        with _typed_errors():
            await self._abort(request, timeout=timeout_s)

    async def close(self) -> None:
        await self._frames.close()
        await self._channel.close(None)


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except grpc.aio.UsageError as error:
        raise Unavailable("the connection has been closed", phase=Phase.TRANSFER) from error
    except grpc.aio.AioRpcError as error:
        typed = error_from_rpc(error)
        if typed.code in _NOT_THE_CLIENTS:
            typed = TransferFailed(f"the receiver refused: {typed.message}")
        typed.phase = typed.phase or Phase.TRANSFER
        raise typed from error
