"""Fills the blocks of a sequence from the offline store, as far as an intact prefix is there."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from eastwest.blocks import BlockHash
from eastwest.errors import StoreUnavailable
from eastwest.ports import BlockSource, ReplicaKV

log = logging.getLogger(__name__)

# Small enough that the buffers of the next batch are the warm ones of the last.
BATCH_BYTES = 8 << 20


def batch_blocks(kv: ReplicaKV) -> int:
    """How many blocks are moved between memory and the store at once."""
    return max(1, BATCH_BYTES // (kv.spec.bytes_per_token * kv.block_tokens))


async def load_stored(
    store: BlockSource | None, kv: ReplicaKV, hashes: Sequence[BlockHash], blocks: Sequence[int]
) -> int:
    """Read the longest stored prefix of `hashes` into `blocks`; how many that were.

    A store that does not answer counts as empty: the KV is computed instead. What was read
    stays good where a later batch fails.
    """
    if store is None or not hashes:
        return 0
    batch, loaded = batch_blocks(kv), 0
    try:
        found = await store.match(hashes)
        while loaded < found:
            stop = min(found, loaded + batch)
            payloads = await store.read(hashes[loaded:stop])
            if not payloads:
                break
            await kv.write(blocks[loaded : loaded + len(payloads)], payloads)
            loaded += len(payloads)
            if loaded < stop:
                break
        await store.touch(hashes[:loaded])
    except StoreUnavailable as error:
        log.warning("stored KV is computed instead of loaded: %s", error.message)
    return loaded
