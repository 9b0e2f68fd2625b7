"""The gRPC face of a `Receiver`: the `KvTransfer` service of one rank, with the replica's commits
on its leader.

Frames reach the handler as the bytes that came in, so that protobuf never touches a payload.
Errors end a call with their typed status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from eastwest.clock import Clock
from eastwest.errors import EastWestError, InvalidArgument
from eastwest.rpc import abort_with
from eastwest.types import SampledToken
from eastwest.v1 import kv_transfer_pb2 as wire
from eastwest.wire import token_from_wire
from eastwest.wire.sealed import seal, unseal
from kv_transfer.intake import FrameIntake
from kv_transfer.ranks import Missing
from kv_transfer.receiver import Receiver

SERVICE = "eastwest.v1.KvTransfer"

Context = grpc.aio.ServicerContext[Any, Any]
RequestT = TypeVar("RequestT", bound=Message)


class Commits(Protocol):
    """The leader's books of the whole replica's transfers."""

    async def commit(
        self, transfer_id: str, epoch: int, first_token: SampledToken, *, finished: bool
    ) -> Sequence[Missing]:
        """What is missing, or nothing: then the transfer is committed."""

    async def abort(self, transfer_id: str, epoch: int, reason: str) -> None:
        """The sender gives up."""


class KvTransferService:
    """Serves `receiver` on the event loop that the worker runs it on.

    commits: None on every rank but the replica's leader. A Push stream that brings nothing for
    `idle_s` is ended, unless its transfer is open.
    """

    def __init__(
        self, receiver: Receiver, commits: Commits | None, clock: Clock, *, idle_s: float
    ) -> None:
        self._receiver = receiver
        self._commits = commits
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
        intake = FrameIntake(self._receiver, self._clock)
        reading = asyncio.create_task(_read(messages, intake))
        try:
            while not (await asyncio.wait({reading}, timeout=self._idle_s))[0]:
                intake.check_alive(self._idle_s)
            await reading
        except EastWestError as error:
            await abort_with(context, error)
        finally:
            reading.cancel()
            await asyncio.wait({reading})
        return intake.receipt

    async def _commit(self, request: wire.CommitRequest) -> wire.CommitReceipt:
        if not request.HasField("first_token"):
            raise InvalidArgument("a commit has no first token; allowed: exactly one")
        missing = await self._leader().commit(
            request.transfer_id,
            request.epoch,
            token_from_wire(request.first_token),
            finished=request.finished,
        )
        return wire.CommitReceipt(
            transfer_id=request.transfer_id,
            committed=not missing,
            missing=[
                wire.FrameSlice(
                    rank=hole.dst_rank,
                    layer_start=hole.region.layers.start,
                    layer_count=len(hole.region.layers),
                    block_start=hole.region.blocks.start,
                    block_count=len(hole.region.blocks),
                    head_start=hole.region.heads.start,
                    head_count=len(hole.region.heads),
                )
                for hole in missing
            ],
        )

    async def _abort(self, request: wire.AbortTransferRequest) -> wire.AbortTransferReceipt:
        await self._leader().abort(request.transfer_id, request.epoch, "the sender gave up")
        return wire.AbortTransferReceipt()

    def _leader(self) -> Commits:
        if self._commits is None:
            raise InvalidArgument(
                "this rank takes frames only; allowed: commits and aborts to the address that the "
                "ticket names for them, the replica's leader"
            )
        return self._commits


async def _read(messages: AsyncIterator[bytes], intake: FrameIntake) -> None:
    async for message in messages:
        intake.take(message)


def _unary(
    request_type: type[RequestT], method: Callable[[RequestT], Awaitable[Message]]
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that answers malformed requests and typed errors with their status."""

    async def call(message: bytes, context: Context) -> bytes:
        try:
            return seal(await method(unseal(request_type, message)))
        except EastWestError as error:
            await abort_with(context, error)

    return grpc.unary_unary_rpc_method_handler(call)
