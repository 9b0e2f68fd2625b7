"""What keys are called, all beginning with ``{namespace}:``; the inner braces are part of a key.

    kv{version}:{form}:{owner}:{{chain}}:{part}   one part of a block
    kv{version}:{form}:{owner}:{{chain}}:m        its manifest
    a{format}:{{accounts}}:...                    the accounts (`kv_store.accounts`)

form: the digest of `kv_store.codec.BlockForm`, so other models, block sizes and versions never
meet. owner, chain: the two halves of the block's name (`eastwest.blocks`), in hex, so that all of a
tenant's blocks have a prefix of their own. A cluster keeps keys with the same inner braces on one
node: those of a block, where one transaction may write them, and those of the accounts.
"""

from __future__ import annotations

from eastwest.blocks import HASH_BYTES, OWNER_BYTES, BlockHash
from kv_store.codec import DIGEST_BYTES, FORMAT_VERSION

ACCOUNTS_FORMAT = 1
MANIFEST = ":m"


def blocks_prefix(namespace: str) -> str:
    """Of all blocks of this version."""
    return f"{namespace}:kv{FORMAT_VERSION}:"


def block_stem(name: BlockHash) -> str:
    """What stands between a form and a part."""
    return f"{name[:OWNER_BYTES].hex()}:{{{name[OWNER_BYTES:].hex()}}}"


def accounts_prefix(namespace: str) -> str:
    """Of all that the accounts are."""
    return f"{namespace}:a{ACCOUNTS_FORMAT}:{{accounts}}:"


def named_block(stem: str) -> tuple[str, BlockHash] | None:
    """Form and name of a block, from what is between `blocks_prefix` and a part; None where that
    is no block's."""
    form, _, name = stem.partition(":")
    try:
        chained = bytes.fromhex(name.replace(":{", "").removesuffix("}"))
        if len(bytes.fromhex(form)) == DIGEST_BYTES and len(chained) == HASH_BYTES:
            block = BlockHash(chained)
            return (form, block) if block_stem(block) == name else None
    except ValueError:
        pass
    return None


def account_owner(prefix: bytes, key: bytes) -> bytes | None:
    """Whose account this is; None where it is none. prefix: `accounts_prefix`."""
    owner = key.removeprefix(prefix + b"t:")
    return owner if len(owner) == OWNER_BYTES and len(owner) < len(key) else None
