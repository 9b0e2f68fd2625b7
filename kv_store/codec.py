"""How one canonical block becomes stored values: parts, and the manifest that vouches for them.

A block (`eastwest.layout`: ``[layer][K, V][head][token][dim]`` over all layers and heads) is cut
into parts of whole layers, at most `PART_BYTES_MAX` each where one layer allows it, so that a
reader can take layers as they come. Parts are slices of the canonical bytes: nothing is copied.

The manifest is little-endian: magic, version, form digest, block hash, block_tokens, number of
parts, (length, xxh3_64) of each part, and xxh3_64 of all of that. Every version keeps magic,
version and trailing checksum in place, so an intact manifest of another version is told from a
broken one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3
from xxhash import xxh3_64_intdigest

from eastwest.blocks import HASH_BYTES, BlockHash
from eastwest.errors import CorruptData, Incompatible, InvalidArgument
from eastwest.layout import KVSpec
from eastwest.ports import Buffer

FORMAT_VERSION = 2
PART_BYTES_MAX = 4 << 20
DIGEST_BYTES = 16

_MAGIC = b"EWKV"
_HEAD = struct.Struct(f"<4sH{DIGEST_BYTES}s{HASH_BYTES}sIH")
_PART = struct.Struct("<QQ")
_SUM = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class BlockForm:
    """The exact shape of every stored block of one model; build with `form_of`.

    digest: names spec, block_tokens, model fingerprint and number of parts. part_bytes: length of
    each part, in layer order; they sum to `block_bytes`. manifest_bytes: length of every manifest.
    """

    digest: bytes
    block_tokens: int
    block_bytes: int
    part_bytes: tuple[int, ...]
    manifest_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says of its block. form: the digest. parts: length and xxh3_64 of each."""

    form: bytes
    block_hash: BlockHash
    block_tokens: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """What is stored for one block. `parts` are views into the caller's payload."""

    manifest: bytes
    parts: tuple[memoryview, ...]


def form_of(
    spec: KVSpec, block_tokens: int, fingerprint: str, part_bytes_max: int = PART_BYTES_MAX
) -> BlockForm:
    """The form of blocks of `block_tokens` tokens of the model with this fingerprint."""
    layer_bytes = spec.slice_bytes(block_tokens, 1, spec.num_kv_heads)
    layers_max = max(1, part_bytes_max // layer_bytes)
    parts = -(-spec.num_layers // layers_max)
    base, extra = divmod(spec.num_layers, parts)
    name = f"{spec}\0{block_tokens}\0{fingerprint}\0{parts}".encode()
    return BlockForm(
        digest=blake3(name).digest(length=DIGEST_BYTES),
        block_tokens=block_tokens,
        block_bytes=layer_bytes * spec.num_layers,
        part_bytes=tuple((base + (part < extra)) * layer_bytes for part in range(parts)),
        manifest_bytes=_HEAD.size + parts * _PART.size + _SUM.size,
    )


def encode(form: BlockForm, block_hash: BlockHash, payload: Buffer) -> EncodedBlock:
    """Parts and manifest of one block. Raises `InvalidArgument` where the length is wrong."""
    check_length(form.block_bytes, payload)
    parts = cut(form, memoryview(payload).cast("B"))
    checksums = [xxh3_64_intdigest(part) for part in parts]
    return EncodedBlock(_manifest(form, block_hash, checksums), parts)


def check_manifest(form: BlockForm, block_hash: BlockHash, manifest: bytes) -> None:
    """Raise unless this is an intact manifest of this very block and form.

    `CorruptData` where it is truncated, altered or speaks of another block; `Incompatible` where
    it is intact but of another version or form.
    """
    digest, named, block_tokens, count = _head(manifest)
    if digest != form.digest or block_tokens != form.block_tokens:
        raise Incompatible("a manifest of another model, KV form or block size")
    if named != block_hash:
        raise CorruptData(f"a manifest of block {named.hex()}; expected: {block_hash.hex()}")
    if count != len(form.part_bytes) or len(manifest) != form.manifest_bytes:
        raise CorruptData(f"a manifest of {count} parts; expected: {len(form.part_bytes)}")


def read_manifest(manifest: bytes) -> Manifest:
    """What an intact one of this version says, of whatever form. Raises as `check_manifest`."""
    digest, named, block_tokens, count = _head(manifest)
    if len(manifest) != _HEAD.size + count * _PART.size + _SUM.size:
        raise CorruptData(f"a manifest of {len(manifest)} bytes, for {count} parts")
    parts = tuple(_PART.iter_unpack(manifest[_HEAD.size : -_SUM.size]))
    return Manifest(digest, BlockHash(named), block_tokens, parts)


def _head(manifest: bytes) -> tuple[bytes, bytes, int, int]:
    """Form, block, its tokens, and the number of parts, of an intact manifest of this version."""
    body, tail = manifest[: -_SUM.size], manifest[-_SUM.size :]
    if len(body) < _HEAD.size or tail != _SUM.pack(xxh3_64_intdigest(body)):
        raise CorruptData(f"a manifest of {len(manifest)} bytes does not match its checksum")
    magic, version, digest, named, block_tokens, count = _HEAD.unpack_from(body)
    if magic != _MAGIC:
        raise CorruptData("a value that is not a manifest")
    if version != FORMAT_VERSION:
        raise Incompatible(f"a manifest of version {version}; allowed: {FORMAT_VERSION}")
    return digest, named, block_tokens, count


def check_parts(
    form: BlockForm, block_hash: BlockHash, manifest: bytes, checksums: Sequence[int]
) -> None:
    """Raise, as `check_manifest` does, unless `manifest` vouches for parts of these checksums.

    `checksums`: xxh3_64 of each part, whose length is known to be that of the form.
    """
    if manifest != _manifest(form, block_hash, checksums):
        check_manifest(form, block_hash, manifest)
        raise CorruptData(f"a part of block {block_hash.hex()} does not match its checksum")


def decode(form: BlockForm, block_hash: BlockHash, manifest: bytes, payload: Buffer) -> memoryview:
    """The block that `payload` (the parts, one after another) is, once everything holds.

    Raises `CorruptData` or `Incompatible`, as `check_manifest` does.
    """
    view = memoryview(payload).cast("B")
    if len(view) != form.block_bytes:
        raise CorruptData(f"parts of {len(view)} bytes; expected: {form.block_bytes}")
    checksums = [xxh3_64_intdigest(part) for part in cut(form, view)]
    check_parts(form, block_hash, manifest, checksums)
    return view


def check_length(block_bytes: int, payload: Buffer) -> None:
    """Raise `InvalidArgument` unless `payload` has exactly the bytes of one block."""
    length = memoryview(payload).nbytes
    if length != block_bytes:
        raise InvalidArgument(f"a block of {length} bytes; allowed: exactly {block_bytes} bytes")


def cut(form: BlockForm, payload: memoryview) -> tuple[memoryview, ...]:
    """The parts of a block's bytes, as views."""
    start = 0
    parts = []
    for length in form.part_bytes:
        parts.append(payload[start : start + length])
        start += length
    return tuple(parts)


def _manifest(form: BlockForm, block_hash: BlockHash, checksums: Sequence[int]) -> bytes:
    count = len(form.part_bytes)
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, form.digest, block_hash, form.block_tokens, count)
    body = head + b"".join(map(_PART.pack, form.part_bytes, checksums))
    return body + _SUM.pack(xxh3_64_intdigest(body))
