"""Blocks as stored values: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.blocks import HASH_BYTES, BlockHash
from eastwest.errors import CorruptData, Incompatible, InvalidArgument
from eastwest.layout import DTYPE_BYTES, KVSpec
from kv_store.codec import (
    PART_BYTES_MAX,
    BlockForm,
    EncodedBlock,
    decode,
    encode,
    form_of,
)
from tests.contract.kv_store.builders import of_version

untimed = settings(deadline=None)  # machines may be busy
NAME = BlockHash(bytes(range(HASH_BYTES)))
SPEC = KVSpec(num_layers=5, num_kv_heads=2, key_dim=4, value_dim=4, dtype="bfloat16")
FORM = form_of(SPEC, 4, "model", part_bytes_max=300)  # parts of 2, 2 and 1 layers
PAYLOAD = bytes(i * i % 251 for i in range(FORM.block_bytes))


specs = st.builds(
    KVSpec,
    num_layers=st.integers(1, 9),
    num_kv_heads=st.integers(1, 4),
    key_dim=st.integers(1, 8),
    value_dim=st.integers(0, 8),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
)
forms = st.builds(form_of, specs, st.integers(1, 8), st.just("model"), st.integers(1, 4096))


def joined(block: EncodedBlock) -> bytes:
    return b"".join(block.parts)


@untimed
@given(forms, st.binary(min_size=1, max_size=50))
def test_what_is_encoded_decodes_to_the_same_bytes(form: BlockForm, data: bytes) -> None:
    payload = (data * (form.block_bytes // len(data) + 1))[: form.block_bytes]
    block = encode(form, NAME, payload)
    assert len(block.manifest) == form.manifest_bytes
    assert tuple(map(len, block.parts)) == form.part_bytes
    assert decode(form, NAME, block.manifest, joined(block)) == payload


@untimed
@given(specs, st.integers(1, 8), st.integers(1, 4096))
def test_parts_are_whole_layers_within_the_limit(
    spec: KVSpec, block_tokens: int, part_bytes_max: int
) -> None:
    form = form_of(spec, block_tokens, "model", part_bytes_max)
    layer_bytes = spec.slice_bytes(block_tokens, 1, spec.num_kv_heads)
    assert sum(form.part_bytes) == form.block_bytes == spec.bytes_per_token * block_tokens
    assert all(length % layer_bytes == 0 for length in form.part_bytes)
    assert max(form.part_bytes) <= max(part_bytes_max, layer_bytes)


def test_parts_of_a_large_model_stay_within_four_mebibytes() -> None:
    spec = KVSpec(num_layers=80, num_kv_heads=8, key_dim=128, value_dim=128, dtype="bfloat16")
    form = form_of(spec, 64, "large")
    assert max(form.part_bytes) <= PART_BYTES_MAX
    assert len(form.part_bytes) == -(-form.block_bytes // PART_BYTES_MAX)


def test_a_small_model_has_one_part() -> None:
    spec = KVSpec(num_layers=30, num_kv_heads=3, key_dim=64, value_dim=64, dtype="float32")
    assert len(form_of(spec, 16, "small").part_bytes) == 1


def test_parts_are_views_of_the_payload() -> None:
    payload = bytearray(PAYLOAD)
    block = encode(FORM, NAME, payload)
    payload[-1] ^= 0xFF
    assert block.parts[-1][-1] == payload[-1]


@untimed
@given(st.integers(0, FORM.block_bytes - 1), st.integers(0, 7))
def test_any_flipped_bit_of_a_part_is_corrupt_data(position: int, bit: int) -> None:
    block = encode(FORM, NAME, PAYLOAD)
    data = bytearray(joined(block))
    data[position] ^= 1 << bit
    with pytest.raises(CorruptData):
        decode(FORM, NAME, block.manifest, data)


@untimed
@given(st.integers(0, FORM.manifest_bytes - 1), st.integers(0, 7))
def test_any_flipped_bit_of_a_manifest_is_corrupt_data(position: int, bit: int) -> None:
    manifest = bytearray(encode(FORM, NAME, PAYLOAD).manifest)
    manifest[position] ^= 1 << bit
    with pytest.raises(CorruptData):
        decode(FORM, NAME, bytes(manifest), PAYLOAD)


@untimed
@given(st.integers(0, FORM.manifest_bytes - 1))
def test_any_truncation_of_a_manifest_is_corrupt_data(length: int) -> None:
    manifest = encode(FORM, NAME, PAYLOAD).manifest
    with pytest.raises(CorruptData):
        decode(FORM, NAME, manifest[:length], PAYLOAD)


@untimed
@given(st.integers(0, FORM.block_bytes - 1))
def test_any_truncation_of_the_parts_is_corrupt_data(length: int) -> None:
    manifest = encode(FORM, NAME, PAYLOAD).manifest
    with pytest.raises(CorruptData):
        decode(FORM, NAME, manifest, PAYLOAD[:length])


@untimed
@given(st.binary(max_size=200))
def test_bytes_of_anybody_are_never_a_manifest(data: bytes) -> None:
    with pytest.raises(CorruptData):
        decode(FORM, NAME, data, PAYLOAD)


def test_swapped_parts_are_corrupt_data() -> None:
    block = encode(FORM, NAME, PAYLOAD)
    first, second, third = block.parts
    with pytest.raises(CorruptData):
        decode(FORM, NAME, block.manifest, b"".join((second, first, third)))


def test_the_manifest_of_another_block_is_corrupt_data() -> None:
    manifest = encode(FORM, BlockHash(bytes(HASH_BYTES)), PAYLOAD).manifest
    with pytest.raises(CorruptData, match="expected: 000102"):
        decode(FORM, NAME, manifest, PAYLOAD)


@pytest.mark.parametrize(
    "other",
    [
        form_of(SPEC, 4, "another model", part_bytes_max=300),
        form_of(KVSpec(5, 2, 4, 4, "float16"), 4, "model", part_bytes_max=300),
        form_of(KVSpec(5, 2, 2, 6, "bfloat16"), 4, "model", part_bytes_max=300),
        form_of(SPEC, 4, "model", part_bytes_max=100),
    ],
    ids=["fingerprint", "dtype", "dims", "parts"],
)
def test_an_intact_manifest_of_another_form_is_incompatible(other: BlockForm) -> None:
    assert other.block_bytes == FORM.block_bytes
    with pytest.raises(Incompatible):
        decode(FORM, NAME, encode(other, NAME, PAYLOAD).manifest, PAYLOAD)


def test_an_intact_manifest_of_another_version_is_incompatible() -> None:
    with pytest.raises(Incompatible, match="version 9"):
        decode(FORM, NAME, of_version(encode(FORM, NAME, PAYLOAD).manifest, 9), PAYLOAD)


@pytest.mark.parametrize("length", [0, FORM.block_bytes - 1, FORM.block_bytes + 1])
def test_a_payload_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidArgument, match=f"exactly {FORM.block_bytes}"):
        encode(FORM, NAME, bytes(length))
