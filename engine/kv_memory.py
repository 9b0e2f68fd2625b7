"""The paged KV of one rank, as the engine sees it and in canonical form.

The bytes lie as `eastwest.paged_kv` says, in one allocation, so that keys and values of a layer
are plain tensors, and a sequence whose blocks are consecutive is a view of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from eastwest.errors import ConfigError
from eastwest.layout import QUANTIZED, KVSpec, Shard
from eastwest.paged_kv import PagedKV, pool_bytes
from eastwest.ports import Buffer
from engine.kv_planes import TORCH_DTYPES, Places, Plane, Runs, make_plane


class LayerKV:
    """Keys and values of one layer: ``keys [H, S, key dim]``, ``values [H, S, value dim]``.

    What a step reads and writes, in the dtype that it computes in. has_values: whether the spec
    has any.
    """

    def __init__(self, keys: Plane, values: Plane | None) -> None:
        self.has_values = values is not None
        self._keys = keys
        self._values = values

    def store(
        self, slots: torch.Tensor | None, runs: Places,
        keys: torch.Tensor, values: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """Put ``keys [T, H, key dim]`` and values likewise where they belong.

        runs: ``(T index, first slot, count)``; slots: the same, ``[T]``, given where the runs
        are so short that one scattered copy is quicker.
        """
        self._keys.store(slots, runs, keys)
        if self._values is not None and values is not None:
            self._values.store(slots, runs, values)

    def keys(self, runs: Runs) -> torch.Tensor:
        """``[1, H, tokens, key dim]`` of the slots of `runs`; a view where that is possible."""
        return self._keys.load(runs)

    def values(self, runs: Runs) -> torch.Tensor:
        """``[1, H, tokens, value dim]`` likewise."""
        assert self._values is not None, "this model's KV has no values"
        return self._values.load(runs)


class TorchKVMemory:
    """`eastwest.ports.KVMemory` whose layers an engine computes with.

    buffer: host memory of `pool_bytes` to lie in, which must live as long as this; none takes
    memory of its own, from the system as it is first written to. Blocks hold arbitrary bytes
    until then. `layers` are the shard's, in order. compute: the dtype in which layers give and
    take rows; none is that of the spec, or float32 where that is quantized.
    """

    def __init__(
        self,
        spec: KVSpec,
        shard: Shard,
        num_blocks: int,
        block_tokens: int,
        device: torch.device,
        buffer: Buffer | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        self.spec = spec
        self.shard = shard
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.device = device
        size = pool_bytes(spec, shard, num_blocks, block_tokens)
        if device.type == "cpu":
            _fits_in_memory(size)
        if buffer is None:
            self._storage = torch.empty(size, dtype=torch.uint8, device=device)
        else:
            assert device.type == "cpu", "a buffer in host memory for a device's KV"
            self._storage = torch.frombuffer(buffer, dtype=torch.uint8, count=size)
        # Where the pool is host memory, canonical bytes are copied straight from and to it.
        self.paged: PagedKV | None = None
        if device.type == "cpu":
            array = self._storage.numpy().data
            self.paged = PagedKV(array, spec, shard, num_blocks, block_tokens)
        if compute is None:
            compute = torch.float32 if spec.dtype in QUANTIZED else TORCH_DTYPES[spec.dtype]
        self.layers = tuple(self._layers(compute))

    def read(
        self, blocks: Sequence[int], layers: range, heads: range, tokens: range | None = None
    ) -> Buffer:
        """See `KVMemory.read`. The new buffer is the caller's."""
        if self.paged is not None:
            return self.paged.read(blocks, layers, heads, tokens)
        staged, scratch = self._staging(blocks, layers)
        for ours, theirs in zip(self._planes(blocks, layers), scratch, strict=True):
            theirs.copy_(ours)
        return staged.read(range(len(blocks)), layers, heads, tokens)

    def write(
        self,
        blocks: Sequence[int],
        layers: range,
        heads: range,
        payload: Buffer,
        tokens: range | None = None,
    ) -> None:
        """See `KVMemory.write`. `payload` is not kept."""
        if self.paged is not None:
            self.paged.write(blocks, layers, heads, payload, tokens)
            return
        staged, scratch = self._staging(blocks, layers)
        planes = self._planes(blocks, layers)
        for ours, theirs in zip(planes, scratch, strict=True):
            theirs.copy_(ours)
        staged.write(range(len(blocks)), layers, heads, payload, tokens)
        slots = self._slots(blocks)
        for plane, theirs in zip(self._by_plane(), scratch, strict=True):
            index = slice(layers.start - self.shard.layers.start,
                          layers.stop - self.shard.layers.start)  # fmt: skip
            plane[index, :, slots] = theirs.to(self.device)

    # A device's memory is copied through host memory of the same geometry.

    def _staging(self, blocks: Sequence[int], layers: range) -> tuple[PagedKV, list[torch.Tensor]]:
        """Host memory for `blocks` and `layers` alone, and its planes as tensors."""
        shard = Shard(layers, self.shard.heads)
        size = pool_bytes(self.spec, shard, len(blocks), self.block_tokens)
        staged = PagedKV(
            np.empty(size, np.uint8).data, self.spec, shard, len(blocks), self.block_tokens
        )
        return staged, [torch.from_numpy(plane) for plane in staged.planes]

    def _planes(self, blocks: Sequence[int], layers: range) -> list[torch.Tensor]:
        first = self.shard.layers.start
        index, slots = slice(layers.start - first, layers.stop - first), self._slots(blocks)
        return [plane[index][:, :, slots] for plane in self._by_plane()]

    def _slots(self, blocks: Sequence[int]) -> torch.Tensor:
        starts = torch.tensor(list(blocks), device=self.device).unsqueeze(1) * self.block_tokens
        return (starts + torch.arange(self.block_tokens, device=self.device)).flatten()

    def _by_plane(self) -> list[torch.Tensor]:
        """``[layer, head, slot, bytes of a row]`` of keys and, where there are any, values."""
        spec, heads = self.spec, len(self.shard.heads)
        slots = self.num_blocks * self.block_tokens
        by_layer = self._storage.view(len(self.shard.layers), -1)
        planes, at = [], 0
        for row in filter(None, (spec.key_bytes, spec.value_bytes)):
            size = heads * slots * row
            part = by_layer[:, at : at + size]
            planes.append(part.reshape(-1, heads, slots, row))
            at += size
        return planes

    def _layers(self, compute: torch.dtype) -> Iterator[LayerKV]:
        planes = self._by_plane()
        for index in range(len(self.shard.layers)):
            made = [make_plane(plane[index], self.spec.dtype, compute) for plane in planes]
            yield LayerKV(made[0], made[1] if len(made) > 1 else None)


def _fits_in_memory(size_bytes: int) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size_bytes > total:
        raise ConfigError(
            f"kv_tokens asks for {size_bytes >> 20} MiB of KV; allowed: at most this machine's "
            f"memory, {total >> 20} MiB"
        )
