"""Typed errors over gRPC, and the options of every channel and server.

An error leaves a server as the status that `eastwest.errors.STATUS` names, with the trailing
metadata documented at the top of ``inference.proto``; a client gets the same typed error back.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, NoReturn, cast
from urllib.parse import unquote

import grpc
import grpc.aio

from eastwest.errors import EastWestError, ErrorCode, Phase, Unavailable, error_from
from eastwest.http2 import Fields

CODE_KEY = "eastwest-code"
PHASE_KEY = "eastwest-phase"
RETRIABLE_KEY = "eastwest-retriable"
RETRY_AFTER_KEY = "retry-after-ms"

# A status travels in HTTP/2 headers, which peers limit to a few KiB.
_DETAILS_CHARS = 1024

# Statuses that gRPC itself ends a call with, or that a foreign server sent. CANCELLED is the other
# side going away: a call that this side cancels raises asyncio's CancelledError instead.
_FROM_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: ErrorCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND: ErrorCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ErrorCode.TOO_LARGE,
    grpc.StatusCode.DEADLINE_EXCEEDED: ErrorCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: ErrorCode.UNAVAILABLE,
    grpc.StatusCode.UNAVAILABLE: ErrorCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED: ErrorCode.INCOMPATIBLE,
    grpc.StatusCode.DATA_LOSS: ErrorCode.CORRUPT_DATA,
}

_STATUS = {int(code.value[0]): code for code in grpc.StatusCode}

Options = list[tuple[str, int]]

# Between our own processes: commands carry whole prompts, frames up to kv.frame_bytes of KV. A
# larger message is a defect.
CONTROL_MESSAGE_BYTES = 64 << 20


def error_metadata(error: EastWestError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata that goes with `error`."""
    pairs = [(CODE_KEY, error.code.value), (RETRIABLE_KEY, str(error.status.retriable).lower())]
    if error.phase is not None:
        pairs.append((PHASE_KEY, error.phase.value))
    if error.retry_after_s is not None:
        pairs.append((RETRY_AFTER_KEY, str(round(error.retry_after_s * 1000))))
    return tuple(pairs)


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: EastWestError) -> NoReturn:
    """End the call of `context` with the status of `error`."""
    code = grpc.StatusCode[error.status.grpc]
    await context.abort(code, error.message[:_DETAILS_CHARS], error_metadata(error))
    raise AssertionError("abort raises")


def error_from_rpc(error: grpc.aio.AioRpcError) -> EastWestError:
    """The typed error that ended a call; `InternalError` where the status says no more."""
    metadata = dict(cast(Iterable[tuple[str, object]], error.trailing_metadata() or ()))
    named, where, after = (
        str(metadata.get(key, "")) for key in (CODE_KEY, PHASE_KEY, RETRY_AFTER_KEY)
    )
    code = _FROM_STATUS.get(error.code(), ErrorCode.INTERNAL)
    if named in set(ErrorCode):
        code = ErrorCode(named)
    phase = Phase(where) if where in set(Phase) else None
    typed = error_from(code, error.details() or f"status {error.code().name}", phase=phase)
    if after.isascii() and after.isdigit():
        typed.retry_after_s = int(after) / 1000
    return typed


def error_from_trailers(fields: Fields) -> EastWestError | None:
    """The typed error that the headers which end a call name, None for none."""
    named = dict(fields)
    number = named.get("grpc-status", "")
    code = _STATUS.get(int(number) if number.isdecimal() else -1, grpc.StatusCode.UNKNOWN)
    if code is grpc.StatusCode.OK:
        return None
    if not number:
        return Unavailable(f"the answer was HTTP status {named.get(':status')}")
    metadata = grpc.aio.Metadata(*fields)
    message = unquote(named.get("grpc-message", ""))
    return error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, message))


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without closing its connection, within 20 s."""
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 2),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 20_000),  # milliseconds
    ):
        if hasattr(socket, name):
            connection.setsockopt(level, getattr(socket, name), value)


def channel_options(message_bytes: int) -> Options:
    """Options of a client channel whose messages hold at most `message_bytes` bytes."""
    return [
        *_common(message_bytes),
        # A peer that restarts on its old address is found again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options(message_bytes: int) -> Options:
    """Options of a server. A port that another server holds is an error, never shared."""
    return [
        *_common(message_bytes),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def _common(message_bytes: int) -> Options:
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        # The largest HTTP/2 frame: small frames halve the speed of large messages.
        ("grpc.http2.max_frame_size", 16_777_215),
        # Up to 4 MiB of a stream may be under way unread: enough to keep a link busy, and bounded.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 4 << 20),
        # A peer that vanished without closing its connection is noticed within these.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    ]
