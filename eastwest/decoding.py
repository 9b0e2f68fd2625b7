"""Bytes that are no message, answered by `InvalidArgument` whatever service they are sent to.

gRPC decodes requests out of reach of the handlers of generated services, and ends a call whose
request cannot be decoded with UNKNOWN. Servers that have such services are built with
`RefuseMalformed`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from eastwest.errors import InvalidArgument
from eastwest.rpc import abort_with

Context = grpc.aio.ServicerContext[Any, Any]


class RefuseMalformed(grpc.aio.ServerInterceptor):
    """Decodes requests where a call can still be ended with a status of ours. Handlers without a
    deserializer take bytes, and are left alone."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        decode, encode = _Decoder(handler.request_deserializer), handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _answering(handler.unary_unary, decode), response_serializer=encode
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _streaming(handler.unary_stream, decode.one), response_serializer=encode
            )
        assert handler.stream_stream is not None, "no service here takes a stream for one answer"
        return grpc.stream_stream_rpc_method_handler(
            _streaming(handler.stream_stream, decode.many), response_serializer=encode
        )


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Raises `InvalidArgument`, which a handler may make its own ending of, or let pass."""

    deserialize: Callable[[bytes], Any]

    def one(self, data: bytes) -> Any:
        try:
            return self.deserialize(data)
        except DecodeError as error:
            raise InvalidArgument(f"not a valid message: {error}") from None

    async def many(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in stream:
            yield self.one(data)


def _answering(method: Callable[..., Any], decode: _Decoder) -> Callable[..., Any]:
    async def answer(data: bytes, context: Context) -> Any:
        try:
            return await method(decode.one(data), context)
        except InvalidArgument as error:
            await abort_with(context, error)

    return answer


def _streaming(method: Callable[..., Any], decode: Callable[[Any], Any]) -> Callable[..., Any]:
    async def stream(request: Any, context: Context) -> None:
        try:
            outcome = method(decode(request), context)
            if isinstance(outcome, AsyncIterator):
                async for response in outcome:
                    await context.write(response)
            else:
                await outcome
        except InvalidArgument as error:
            await abort_with(context, error)

    return stream
