"""The paged KV holds canonical runs, whatever blocks, layers, heads and dtype they have."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eastwest.errors import ConfigError, InvalidArgument
from eastwest.layout import KVSpec, Shard
from eastwest.paged_kv import block_runs, pool_bytes
from engine.kv_memory import TorchKVMemory

BLOCKS, TOKENS = 10, 4


def a_memory(dtype: str = "float32", shard: Shard | None = None) -> TorchKVMemory:
    spec = KVSpec(num_layers=3, num_kv_heads=4, key_dim=2, value_dim=2, dtype=dtype)
    shard = shard or Shard(range(3), range(4))
    return TorchKVMemory(spec, shard, BLOCKS, TOKENS, torch.device("cpu"))


def a_payload(memory: TorchKVMemory, blocks: int, layers: range, heads: range) -> bytes:
    size = memory.spec.slice_bytes(blocks * TOKENS, len(layers), len(heads))
    return np.random.default_rng(size).bytes(size)


ranges = st.tuples(st.integers(0, 2), st.integers(1, 3)).map(
    lambda pair: range(pair[0], min(3, pair[0] + pair[1]))
)


@given(
    blocks=st.lists(st.integers(0, BLOCKS - 1), min_size=1, unique=True),
    layers=ranges,
    heads=ranges,
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_what_is_written_is_read_and_nothing_else_changes(
    blocks: list[int], layers: range, heads: range, dtype: str
) -> None:
    memory = a_memory(dtype)
    assert memory.paged is not None
    for plane in memory.paged.planes:
        plane[...] = 7
    payload = a_payload(memory, len(blocks), layers, heads)
    memory.write(blocks, layers, heads, payload)
    assert bytes(memory.read(blocks, layers, heads)) == payload
    slots = [b * TOKENS + i for b in blocks for i in range(TOKENS)]
    for plane in memory.paged.planes:
        touched = np.zeros(plane.shape, np.bool_)
        inside = touched[layers.start : layers.stop, heads.start : heads.stop]
        inside[:, :, slots] = True
        assert bool((plane[~touched] == 7).all())


def test_the_canonical_form_is_layer_kv_head_token_dim() -> None:
    memory = a_memory()
    for plane, layer in enumerate(memory.layers):
        whole = [(0, BLOCKS * TOKENS)]
        for kind, held in enumerate((layer.keys(whole), layer.values(whole))):
            numbers = torch.arange(held.numel()).view(held.shape)
            held.copy_(numbers + 1000 * kind + 10_000 * plane)
    run = np.frombuffer(memory.read([7, 2], range(1, 3), range(1, 2)), np.float32)
    runs = [(28, 4), (8, 4)]
    expected = torch.stack(
        [
            torch.stack([layer.keys(runs)[0, 1:2], layer.values(runs)[0, 1:2]])
            for layer in memory.layers[1:3]
        ]
    )
    assert np.array_equal(run, expected.flatten().numpy())


def test_kv_may_lie_in_memory_of_somebody_else() -> None:
    spec = KVSpec(num_layers=3, num_kv_heads=4, key_dim=2, value_dim=2, dtype="float32")
    shard = Shard(range(3), range(4))
    buffer = bytearray(pool_bytes(spec, shard, BLOCKS, TOKENS))
    memory = TorchKVMemory(spec, shard, BLOCKS, TOKENS, torch.device("cpu"), buffer)
    memory.layers[0].keys([(0, 1)]).fill_(1.0)
    assert np.frombuffer(buffer, np.float32).sum() == 4 * 2


def test_a_latent_has_keys_alone() -> None:
    spec = KVSpec(num_layers=2, num_kv_heads=1, key_dim=6, value_dim=0, dtype="float32")
    memory = TorchKVMemory(spec, Shard(range(2), range(1)), BLOCKS, TOKENS, torch.device("cpu"))
    payload = a_payload(memory, 2, range(2), range(1))
    memory.write([1, 4], range(2), range(1), payload)
    assert bytes(memory.read([1, 4], range(2), range(1))) == payload


def test_a_shard_is_addressed_by_global_indices() -> None:
    whole = a_memory()
    part = a_memory(shard=Shard(range(1, 3), range(2, 4)))
    payload = a_payload(whole, 2, range(1, 3), range(2, 4))
    whole.write([3, 4], range(1, 3), range(2, 4), payload)
    part.write([3, 4], range(1, 3), range(2, 4), payload)
    one = part.read([4], range(2, 3), range(3, 4))
    assert bytes(one) == bytes(whole.read([4], range(2, 3), range(3, 4)))
    with pytest.raises(InvalidArgument, match=r"layers are \[0, 1\]; allowed: some of 1 to 2"):
        part.read([0], range(2), range(2, 4))


@pytest.mark.parametrize("payload", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_taken(payload: type[bytes] | type[bytearray]) -> None:
    memory = a_memory()
    data = a_payload(memory, 1, range(3), range(4))
    memory.write([1], range(3), range(4), payload(data))
    assert bytes(memory.read([1], range(3), range(4))) == data


def test_a_payload_of_another_size_is_refused() -> None:
    memory = a_memory()
    data = a_payload(memory, 2, range(3), range(4))
    with pytest.raises(InvalidArgument, match=f"has {len(data)} bytes; allowed: exactly"):
        memory.write([1], range(3), range(4), data)
    with pytest.raises(InvalidArgument, match="has 0 bytes"):
        memory.write([1], range(3), range(4), b"")


@pytest.mark.parametrize("blocks", [[], [BLOCKS], [-1]])
def test_blocks_that_do_not_exist_are_refused(blocks: list[int]) -> None:
    with pytest.raises(InvalidArgument, match=r"blocks are .*; allowed: some of 0 to 9"):
        a_memory().read(blocks, range(3), range(4))


def test_more_kv_than_memory_is_refused() -> None:
    spec = KVSpec(num_layers=100, num_kv_heads=100, key_dim=128, value_dim=128, dtype="float32")
    shard = Shard(range(100), range(100))
    with pytest.raises(ConfigError, match=r"kv_tokens asks for .* at most this machine's memory"):
        TorchKVMemory(spec, shard, 1 << 20, 1 << 10, torch.device("cpu"))


@given(st.lists(st.integers(0, 30), unique=True))
def test_runs_are_maximal_and_complete(blocks: list[int]) -> None:
    runs = list(block_runs(blocks))
    assert [b for first, n in runs for b in range(first, first + n)] == blocks
    assert all(a + n != b for (a, n), (b, _) in pairwise(runs))
