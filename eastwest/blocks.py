"""Block identity: the chained hash that names a block in memory, on the wire and in the store.

``hash_i = H(hash_{i-1}, tokens_i)``, seeded with the model fingerprint and the tenant's cache
salt, so equal ids mean equal KV, and no tenant can name (or time) another's blocks. H is BLAKE3
truncated to 128 bits: collisions cannot be searched for by a hostile prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NewType

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

BlockHash = NewType("BlockHash", bytes)
HASH_BYTES = 16


def hash_seed(fingerprint: str, salt: str) -> BlockHash:
    """The parent of every first block of one model and one tenant."""
    text = f"eastwest/1\0{fingerprint}\0{salt}".encode()
    return BlockHash(blake3(text).digest(length=HASH_BYTES))


def block_hashes(
    tokens: Sequence[int] | NDArray[np.int64], block_tokens: int, parent: BlockHash
) -> list[BlockHash]:
    """Hashes of the full blocks of `tokens`; a partial last block has none.

    `parent` is the hash of the block before the first of them, or `hash_seed`.
    """
    data = np.asarray(tokens, dtype="<u4").tobytes()
    step = 4 * block_tokens
    hashes: list[BlockHash] = []
    for start in range(0, len(data) - step + 1, step):
        digest = blake3(parent + data[start : start + step]).digest(length=HASH_BYTES)
        parent = BlockHash(digest)
        hashes.append(parent)
    return hashes


def reusable_blocks(prompt_tokens: int, block_tokens: int) -> int:
    """Leading blocks of a prompt whose KV need not be computed. The last token always runs
    through the model, since its logits give the next one, so its block is never a shared one."""
    return (prompt_tokens - 1) // block_tokens


def sequence_blocks(prompt_tokens: int, max_tokens: int, block_tokens: int) -> int:
    """How many blocks hold a prompt and its output. The last output token is never fed, so its
    KV never exists."""
    return blocks_for(prompt_tokens + max_tokens - 1, block_tokens)


def blocks_for(tokens: int, block_tokens: int) -> int:
    """How many blocks hold `tokens` tokens."""
    return -(-tokens // block_tokens)
