"""Block identity: the name of a block in memory, on the wire and in the store.

A name is its owner's tag and a chained hash, ``hash_i = H(name_{i-1}, tokens_i)``, seeded with the
model fingerprint and the tenant's cache salt: so equal names mean equal KV, no tenant can name (or
time) another's blocks, and whoever keeps a block can tell whose account it is on. H is BLAKE3
truncated to 128 bits: collisions cannot be searched for by a hostile prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NewType

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

BlockHash = NewType("BlockHash", bytes)
OWNER_BYTES = 8
_CHAIN_BYTES = 16
HASH_BYTES = OWNER_BYTES + _CHAIN_BYTES


def cache_salt(tenant: str) -> str:
    """What separates a tenant's KV from every other's; no tenant is one, too."""
    return blake3(b"eastwest tenant\0" + tenant.encode()).digest(length=16).hex()


def owner_of(salt: str) -> bytes:
    """The tag of the tenant with this cache salt, with which the names of its blocks begin."""
    return blake3(f"eastwest owner\0{salt}".encode()).digest(length=OWNER_BYTES)


def hash_seed(fingerprint: str, salt: str) -> BlockHash:
    """The parent of every first block of one model and one tenant."""
    text = f"eastwest/1\0{fingerprint}\0{salt}".encode()
    return BlockHash(owner_of(salt) + blake3(text).digest(length=_CHAIN_BYTES))


def block_hashes(
    tokens: Sequence[int] | NDArray[np.int64], block_tokens: int, parent: BlockHash
) -> list[BlockHash]:
    """Names of the full blocks of `tokens`; a partial last block has none.

    `parent` is the name of the block before the first of them, or `hash_seed`.
    """
    data = np.asarray(tokens, dtype="<u4").tobytes()
    step, owner = 4 * block_tokens, parent[:OWNER_BYTES]
    hashes: list[BlockHash] = []
    for start in range(0, len(data) - step + 1, step):
        digest = blake3(parent + data[start : start + step]).digest(length=_CHAIN_BYTES)
        parent = BlockHash(owner + digest)
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
