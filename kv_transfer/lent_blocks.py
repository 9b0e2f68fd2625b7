"""Reads blocks out of the memory of other workers, through their `KvBlocks` service.

A worker that does not answer, is another incarnation or keeps KV in another form lends nothing:
`StoreUnavailable`, and who asked computes. A frame that is not what comes next, or does not match
its checksum, ends what is read from there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import grpc.aio
import numpy as np

from eastwest.blocks import BlockHash
from eastwest.errors import CorruptData, StoreUnavailable
from eastwest.layout import KVSpec
from eastwest.messages import KvSource, ModelInfo
from eastwest.ports import Buffer
from eastwest.rpc import channel_options, error_from_rpc
from eastwest.v1 import kv_blocks_pb2 as wire
from eastwest.wire.workers import kv_spec_to_wire
from kv_transfer.frame_codec import decode

SERVICE = "/eastwest.v1.KvBlocks"
# Connections are kept to so many lenders; with those asked longest ago, they end.
_CHANNELS_MAX = 64


class LentBlocks:
    """Is `eastwest.ports.Lenders`. timeout_s: for an answer, and between two frames.

    model, block_tokens: of the worker that reads. Made on the event loop that uses it.
    """

    def __init__(
        self, model: ModelInfo, block_tokens: int, *, message_bytes: int, timeout_s: float
    ) -> None:
        self._model = model
        self._block_tokens = block_tokens
        self._message_bytes = message_bytes
        self._timeout_s = timeout_s
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def blocks_of(self, lender: KvSource) -> Lender:
        """See the port."""
        return Lender(
            self._channel(lender.address),
            lender,
            self._model,
            self._block_tokens,
            timeout_s=self._timeout_s,
        )

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            options = channel_options(self._message_bytes)
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        self._channels.move_to_end(address)
        if len(self._channels) > _CHANNELS_MAX:
            _, oldest = self._channels.popitem(last=False)
            task = asyncio.create_task(oldest.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return channel

    async def close(self) -> None:
        """Ends every call. Idempotent."""
        channels, self._channels = self._channels, OrderedDict()
        await asyncio.gather(*self._closing, *(c.close() for c in channels.values()))


class Lender:
    """Is a `BlockSource`: the memory of one incarnation of a worker."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        lender: KvSource,
        model: ModelInfo,
        block_tokens: int,
        *,
        timeout_s: float,
    ) -> None:
        self._lender = lender
        self._spec = model.kv
        self._block_bytes = model.kv.bytes_per_token * block_tokens
        self._timeout_s = timeout_s
        self._asked = wire.BlockChain(
            epoch=lender.epoch,
            fingerprint=model.fingerprint,
            kv=kv_spec_to_wire(model.kv),
            block_tokens=block_tokens,
        )
        self._match = channel.unary_unary(
            f"{SERVICE}/Match",
            request_serializer=wire.BlockChain.SerializeToString,
            response_deserializer=wire.BlockMatch.FromString,
        )
        self._read: grpc.aio.UnaryStreamMultiCallable[wire.BlockChain, bytes]
        self._read = channel.unary_stream(
            f"{SERVICE}/Read", request_serializer=wire.BlockChain.SerializeToString
        )

    async def match(self, hashes: Sequence[BlockHash]) -> int:
        """See the port."""
        try:
            answer = await self._match(self._chain(hashes), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._unavailable(error_from_rpc(error).message) from error
        return min(max(0, answer.blocks), len(hashes))

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        """See the port."""
        landing = _Landing(self._spec, self._lender.epoch, self._block_bytes, len(hashes))
        call = self._read(self._chain(hashes))
        try:
            while True:
                async with asyncio.timeout(self._timeout_s):
                    message = await call.read()
                if not isinstance(message, bytes):
                    break
                landing.take(message)
        except CorruptData:
            pass  # what came before it is intact
        except TimeoutError:
            raise self._unavailable(f"nothing for {self._timeout_s} s") from None
        except grpc.aio.AioRpcError as error:
            raise self._unavailable(error_from_rpc(error).message) from error
        finally:
            call.cancel()
        return landing.blocks()

    async def touch(self, hashes: Sequence[BlockHash]) -> None:
        """See the port: it was used by being read."""

    def _chain(self, hashes: Sequence[BlockHash]) -> wire.BlockChain:
        chain = wire.BlockChain()
        chain.CopyFrom(self._asked)
        chain.hashes = b"".join(hashes)
        return chain

    def _unavailable(self, reason: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self._lender.worker_id} lends no KV: {reason}")


class _Landing:
    """Puts the layers of blocks one behind another, as they are to come."""

    def __init__(self, spec: KVSpec, epoch: int, block_bytes: int, blocks: int) -> None:
        # What stays untouched of it costs nothing.
        self._memory = np.empty(blocks * block_bytes, np.uint8).data
        self._spec = spec
        self._epoch = epoch
        self._block_bytes = block_bytes
        self._layer_bytes = block_bytes // spec.num_layers
        self._layers = 0

    def take(self, message: bytes) -> None:
        """The next frame. Raises `CorruptData` where it is not that."""
        frame = decode(message)
        header, region = frame.header, frame.header.region
        layers = self._spec.num_layers
        block, layer = divmod(self._layers, layers)
        expected = (self._epoch, range(block, block + 1), range(self._spec.num_kv_heads), layer)
        if (header.epoch, region.blocks, region.heads, region.layers.start) != expected:
            raise CorruptData("a frame that is not the next one")
        start = self._layers * self._layer_bytes
        stop = start + len(region.layers) * self._layer_bytes
        whole = region.layers.stop <= layers and stop <= len(self._memory)
        if not whole or len(frame.payload) != stop - start or not frame.intact():
            raise CorruptData("a frame that does not match its header or its checksum")
        self._memory[start:stop] = frame.payload
        self._layers += len(region.layers)

    def blocks(self) -> list[Buffer]:
        """Those that are complete."""
        size, count = self._block_bytes, self._layers // self._spec.num_layers
        return [self._memory[i * size : (i + 1) * size] for i in range(count)]
