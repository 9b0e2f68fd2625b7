"""The `KvBlocks` service of a replica: what it has in memory, for other workers to read.

What is being read is kept by an owner of its own (`OwnerKind.LOAN`) until the call ends. Readers
are few at a time, and each has one batch of blocks copied at once; one that does not take what it
asked for is given up after `idle_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from eastwest.blocks import HASH_BYTES, BlockHash
from eastwest.errors import (
    DeadlineExceeded,
    EastWestError,
    Incompatible,
    InvalidArgument,
    Overloaded,
    Phase,
    StaleEpoch,
)
from eastwest.in_thread import in_thread
from eastwest.messages import WorkerInfo
from eastwest.ports import Buffer, ReplicaKV
from eastwest.rpc import abort_with
from eastwest.v1 import kv_blocks_pb2 as wire
from eastwest.wire.kv_events import hashes_from_wire
from eastwest.wire.workers import kv_spec_from_wire
from kv_transfer.frame_codec import Header, encode
from kv_transfer.ledger import Owner, OwnerKind
from kv_transfer.plan import Region
from runtime.holdings import Holdings
from runtime.stored_prefix import batch_blocks

SERVICE = "eastwest.v1.KvBlocks"
READERS_MAX = 4

Context = grpc.aio.ServicerContext[Any, Any]


class BlockService:
    """See the module. info: of this incarnation. frame_bytes: payload of one frame, at most."""

    def __init__(
        self,
        info: Callable[[], WorkerInfo],
        kv: ReplicaKV,
        holdings: Holdings,
        *,
        frame_bytes: int,
        idle_s: float,
    ) -> None:
        self._info = info
        self._kv = kv
        self._holdings = holdings
        self._frame_bytes = frame_bytes
        self._idle_s = idle_s
        self._loans = 0
        self._open: set[Owner] = set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service; called once, before the server starts."""
        handlers = {
            "Match": grpc.unary_unary_rpc_method_handler(
                self._match,
                request_deserializer=wire.BlockChain.FromString,
                response_serializer=wire.BlockMatch.SerializeToString,
            ),
            "Read": grpc.unary_stream_rpc_method_handler(
                self._read, request_deserializer=wire.BlockChain.FromString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def owners(self) -> Collection[Owner]:
        """Loans that are open, for the auditor."""
        return self._open

    async def _match(self, request: wire.BlockChain, context: Context) -> wire.BlockMatch:
        try:
            return wire.BlockMatch(blocks=self._holdings.pool.match(self._chain(request)))
        except EastWestError as error:
            await abort_with(context, error)

    async def _read(self, request: wire.BlockChain, context: Context) -> None:
        try:
            with self._loan(self._chain(request)) as blocks:
                async for frame in self._frames(blocks):
                    async with asyncio.timeout(self._idle_s):
                        await context.write(frame)
        except TimeoutError:
            late = f"a reader has taken nothing for {self._idle_s} s"
            await abort_with(context, DeadlineExceeded(late, phase=Phase.TRANSFER))
        except EastWestError as error:
            await abort_with(context, error)

    @contextmanager
    def _loan(self, hashes: Sequence[BlockHash]) -> Iterator[Sequence[int]]:
        if len(self._open) >= READERS_MAX:
            raise Overloaded(f"{READERS_MAX} workers read here already, the most")
        self._loans += 1
        owner = Owner(OwnerKind.LOAN, str(self._loans))
        blocks = self._holdings.lend(owner, hashes)
        self._open.add(owner)
        try:
            yield blocks
        finally:
            self._open.discard(owner)
            self._holdings.release(owner)

    async def _frames(self, blocks: Sequence[int]) -> AsyncIterator[bytes]:
        batch = batch_blocks(self._kv)
        for start in range(0, len(blocks), batch):
            payloads = await self._kv.read(blocks[start : start + batch])
            for number, payload in enumerate(payloads, start):
                for header, part in self._cut(number, payload):
                    yield await in_thread(encode, header, part)

    def _cut(self, number: int, payload: Buffer) -> Iterator[tuple[Header, memoryview]]:
        """One block in frames of whole layers."""
        spec, view = self._kv.spec, memoryview(payload).cast("B")
        layer_bytes = len(view) // spec.num_layers
        layers = max(1, self._frame_bytes // layer_bytes)
        for first in range(0, spec.num_layers, layers):
            part = range(first, min(first + layers, spec.num_layers))
            region = Region(part, range(number, number + 1), range(spec.num_kv_heads))
            header = Header("", self._info().epoch, 0, region)
            yield header, view[part.start * layer_bytes : part.stop * layer_bytes]

    def _chain(self, request: wire.BlockChain) -> Sequence[BlockHash]:
        """What is asked for. Raises unless it can mean anything here."""
        info = self._info()
        if request.epoch != info.epoch:
            raise StaleEpoch(f"epoch {request.epoch} is asked; this is {info.epoch}")
        asked = request.fingerprint, kv_spec_from_wire(request.kv), request.block_tokens
        here = info.model.fingerprint, info.model.kv, info.block_tokens
        if asked != here:
            raise Incompatible(f"KV is asked for as {asked}; allowed: {here}")
        if len(request.hashes) > info.num_blocks * HASH_BYTES:
            raise InvalidArgument(
                f"a chain has {len(request.hashes)} bytes of hashes; allowed: up to "
                f"{info.num_blocks} blocks of {HASH_BYTES} bytes"
            )
        return hashes_from_wire(request.hashes)
