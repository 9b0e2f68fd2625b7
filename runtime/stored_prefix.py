"""Fills the blocks of a sequence from the offline store, as far as an intact prefix is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import ParamSpec, TypeVar

from eastwest.blocks import BlockHash
from eastwest.errors import StoreUnavailable
from eastwest.ports import BlockStore, Buffer, KVMemory

log = logging.getLogger(__name__)

# Small enough that the buffers of the next batch are the warm ones of the last.
BATCH_BYTES = 8 << 20

Params = ParamSpec("Params")
Result = TypeVar("Result")


async def load_stored(
    store: BlockStore | None, kv: KVMemory, hashes: Sequence[BlockHash], blocks: Sequence[int]
) -> int:
    """Read the longest stored prefix of `hashes` into `blocks`; returns how many blocks.

    A store that does not answer counts as empty: the KV is computed instead. What was read
    stays good where a later batch fails.
    """
    if store is None or not hashes:
        return 0
    batch = max(1, BATCH_BYTES // (kv.spec.bytes_per_token * kv.block_tokens))
    loaded = 0
    try:
        found = await store.match(hashes)
        while loaded < found:
            stop = min(found, loaded + batch)
            payloads = await store.read(hashes[loaded:stop])
            if not payloads:
                break
            await in_thread(_fill, kv, blocks[loaded:stop], payloads)
            loaded += len(payloads)
            if loaded < stop:
                break
        await store.touch(hashes[:loaded])
    except StoreUnavailable as error:
        log.warning("stored KV is computed instead of loaded: %s", error.message)
    return loaded


async def in_thread(
    function: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
) -> Result:
    """Run in a thread; a cancelled caller still waits for its end.

    For work on KV blocks: after this call nothing touches them any more, however it ended.
    """
    future = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _fill(kv: KVMemory, blocks: Sequence[int], payloads: Sequence[Buffer]) -> None:
    layers, heads = range(kv.spec.num_layers), range(kv.spec.num_kv_heads)
    for block, payload in zip(blocks, payloads, strict=False):
        kv.write([block], layers, heads, payload)
