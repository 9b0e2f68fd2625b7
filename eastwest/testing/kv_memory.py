"""A paged KV in plain memory: `KVMemory` for tests and benchmarks that need no engine."""

from __future__ import annotations

import numpy as np

from eastwest.layout import KVSpec, Shard
from eastwest.paged_kv import Bytes, PagedKV, pool_bytes


class ArrayKVMemory(PagedKV):
    """A `PagedKV` with a buffer of its own, zeros at first.

    keys, values: ``[layer][head][slot][bytes of a row]``; values are empty where there are none.
    """

    def __init__(self, spec: KVSpec, shard: Shard, num_blocks: int, block_tokens: int) -> None:
        self.buffer: Bytes = np.zeros(pool_bytes(spec, shard, num_blocks, block_tokens), np.uint8)
        super().__init__(self.buffer.data, spec, shard, num_blocks, block_tokens)

    @property
    def keys(self) -> Bytes:
        return self.planes[0]

    @property
    def values(self) -> Bytes:
        return self.planes[1] if len(self.planes) > 1 else np.empty(0, np.uint8)

    def fill(self, seed: int) -> None:
        """Random content everywhere."""
        rng = np.random.default_rng(seed)
        self.buffer[...] = rng.integers(0, 256, self.buffer.shape, np.uint8)
