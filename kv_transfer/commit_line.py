"""Commits and aborts to one address: calls over gRPC, on a connection that can be trusted.

A connection that a damaged byte has put out of step answers with statuses of gRPC itself, for ever
after: those are no reason to give up a transfer, but one to ask again on a new connection.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from eastwest.errors import (
    CorruptData,
    EastWestError,
    ErrorCode,
    InvalidArgument,
    Phase,
    TransferFailed,
    Unavailable,
)
from eastwest.rpc import CODE_KEY, channel_options, error_from_rpc
from eastwest.v1 import kv_transfer_pb2 as wire
from eastwest.wire.sealed import seal, unseal

_Request = wire.CommitRequest | wire.AbortTransferRequest
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


class CommitLine:
    """One address. Errors are typed, of the phase `transfer`, and never the client's fault."""

    def __init__(self, address: str, *, message_bytes: int) -> None:
        self._address = address
        # Of its own: channels that share a connection would share what is wrong with it.
        self._options = [
            *channel_options(message_bytes),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._line = self._new_line()

    async def commit(self, request: wire.CommitRequest, timeout_s: float) -> wire.CommitReceipt:
        """What the receiver makes of it. `DeadlineExceeded` where it does not say so in time."""
        line = self._line
        answer = await self._ask("Commit", request, timeout_s)
        try:
            if answer is None:
                raise CorruptData("the call ended well without it")
            receipt = unseal(wire.CommitReceipt, answer)
            if receipt.transfer_id not in ("", request.transfer_id):
                raise CorruptData(f"it is of transfer {receipt.transfer_id!r}")
        except (CorruptData, InvalidArgument) as error:
            self._distrust(line)
            message = f"the receipt of {request.transfer_id!r} is damaged: {error.message}"
            raise TransferFailed(message, phase=Phase.TRANSFER) from error
        return receipt

    async def abort(self, request: wire.AbortTransferRequest, timeout_s: float) -> None:
        await self._ask("AbortTransfer", request, timeout_s)

    async def close(self) -> None:
        await self._line.channel.close(None)

    async def _ask(self, method: str, request: _Request, timeout_s: float) -> bytes | None:
        line = self._line
        line.users += 1
        try:
            # Nothing: where damage took the message and left the end.
            answer: bytes | None = await line.calls[method](request, timeout=timeout_s)
            return answer
        except grpc.aio.UsageError as error:
            raise Unavailable("the connection has been closed", phase=Phase.TRANSFER) from error
        except grpc.aio.AioRpcError as error:
            if not _said_by_a_worker(error):
                self._distrust(line)
            raise _typed(error) from error
        finally:
            line.users -= 1
            if line is not self._line and not line.users:
                await line.channel.close(None)

    def _distrust(self, line: _Line) -> None:
        """Use a new connection from here on; calls that are under way may end on theirs."""
        if line is self._line:
            self._line = self._new_line()

    def _new_line(self) -> _Line:
        return _Line(grpc.aio.insecure_channel(self._address, options=self._options))


class _Line:
    """One connection. users: calls under way."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.users = 0
        self.calls: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, bytes]] = {
            method: channel.unary_unary(_METHOD + method, request_serializer=seal)
            for method in ("Commit", "AbortTransfer")
        }


def _said_by_a_worker(error: grpc.aio.AioRpcError) -> bool:
    """Or by gRPC of an address that cannot be reached, which it goes on trying."""
    named = any(key == CODE_KEY for key, _ in error.trailing_metadata() or ())
    return named or error.code() is grpc.StatusCode.UNAVAILABLE


def _typed(error: grpc.aio.AioRpcError) -> EastWestError:
    typed = error_from_rpc(error)
    if typed.code in _NOT_THE_CLIENTS:
        typed = TransferFailed(f"the receiver refused: {typed.message}")
    typed.phase = typed.phase or Phase.TRANSFER
    return typed
