"""Typed errors and channel options over a real connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from eastwest.errors import BY_CODE, EastWestError, ErrorCode, Phase, error_from
from eastwest.rpc import abort_with, channel_options, error_from_rpc, server_options

WAIT_S = 20.0
MESSAGE_BYTES = 1 << 16
METHOD = "/test.Test/Call"


class Failing:
    """A server whose only method ends with `error`, or echoes where there is none."""

    def __init__(self) -> None:
        self.error: EastWestError | None = None

    async def call(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if self.error is not None:
            await abort_with(context, self.error)
        return request


@asynccontextmanager
async def a_server(failing: Failing) -> AsyncIterator[str]:
    server = grpc.aio.server(options=server_options(MESSAGE_BYTES))
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Call": grpc.unary_unary_rpc_method_handler(failing.call)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


async def failure(
    address: str, request: bytes = b"", *, method: str = METHOD, timeout_s: float = WAIT_S
) -> EastWestError:
    """The typed error that the call ends with."""
    options = channel_options(1 << 20)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, timeout=timeout_s)
        return error_from_rpc(caught.value)


@pytest.mark.parametrize("code", ErrorCode)
async def test_a_typed_error_arrives_as_it_was_raised(code: ErrorCode) -> None:
    failing = Failing()
    failing.error = error_from(code, "n is 3; allowed: ≥ 4", phase=Phase.TRANSFER)
    failing.error.retry_after_s = 1.5
    async with a_server(failing) as address:
        error = await failure(address)
    assert type(error) is BY_CODE[code]
    assert error.message == "n is 3; allowed: ≥ 4"
    assert error.phase is Phase.TRANSFER
    assert error.retry_after_s == 1.5


async def test_an_error_without_phase_or_hint_arrives_without() -> None:
    failing = Failing()
    failing.error = error_from(ErrorCode.NOT_FOUND, "x" * 5000)
    async with a_server(failing) as address:
        error = await failure(address)
    assert error.phase is None
    assert error.retry_after_s is None
    assert error.message == "x" * 1024


async def test_what_grpc_itself_reports_is_typed_too() -> None:
    async with a_server(Failing()) as address:
        unknown = await failure(address, method="/test.Test/Other")
        large = await failure(address, bytes(MESSAGE_BYTES + 1))
        late = await failure(address, timeout_s=-1)
    gone = await failure(address)
    codes = [error.code for error in (unknown, large, late, gone)]
    assert codes == [
        ErrorCode.INCOMPATIBLE,
        ErrorCode.TOO_LARGE,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.UNAVAILABLE,
    ]


async def test_a_port_in_use_is_an_error() -> None:
    async with a_server(Failing()) as address:
        other = grpc.aio.server(options=server_options(MESSAGE_BYTES))
        with pytest.raises(RuntimeError):
            other.add_insecure_port(address)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.CANCELLED, ErrorCode.UNAVAILABLE),
        (grpc.StatusCode.UNKNOWN, ErrorCode.INTERNAL),
        (grpc.StatusCode.DATA_LOSS, ErrorCode.CORRUPT_DATA),
    ],
)
def test_a_foreign_status_with_foreign_metadata_is_understood(
    status: grpc.StatusCode, code: ErrorCode
) -> None:
    trailing = grpc.aio.Metadata(
        ("eastwest-code", "no such code"),
        ("eastwest-phase", "no such phase"),
        ("retry-after-ms", "soon"),
    )
    error = error_from_rpc(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), trailing))
    assert (error.code, error.phase, error.retry_after_s) == (code, None, None)
    assert error.message == f"status {status.name}"
