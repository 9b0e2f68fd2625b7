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

BlockHash = NewType("BlockHash", bytes)
HASH_BYTES = 16


def hash_seed(fingerprint: str, salt: str) -> BlockHash:
    """The parent of every first block of one model and one tenant."""
    text = f"eastwest/1\0{fingerprint}\0{salt}".encode()
    return BlockHash(blake3(text).digest(length=HASH_BYTES))


def block_hashes(
    tokens: Sequence[int], block_tokens: int, parent: BlockHash, *, first_token: int = 0
) -> list[BlockHash]:
    """Hashes of the full blocks of ``tokens[first_token:]``; a partial last block has none.

    `parent` is the hash of the block before `first_token` (or `hash_seed`), and `first_token`
    a multiple of `block_tokens`.
    """
    assert first_token % block_tokens == 0
    data = np.asarray(tokens[first_token:], dtype="<u4").tobytes()
    step = 4 * block_tokens
    hashes: list[BlockHash] = []
    for start in range(0, len(data) - step + 1, step):
        digest = blake3(parent + data[start : start + step]).digest(length=HASH_BYTES)
        parent = BlockHash(digest)
        hashes.append(parent)
    return hashes


def blocks_for(tokens: int, block_tokens: int) -> int:
    """How many blocks hold `tokens` tokens."""
    return -(-tokens // block_tokens)
