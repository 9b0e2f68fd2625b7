"""The paged KV holds canonical runs, whatever blocks, layers, heads and dtype they have, and what
layers store in them comes back as near as the dtype allows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eastwest.errors import ConfigError, InvalidArgument
from eastwest.layout import DTYPE_BYTES, KVSpec, Shard
from eastwest.paged_kv import block_runs, pool_bytes
from engine.kv_memory import TorchKVMemory
from engine.kv_planes import quantize_kv
from kv_transfer.convert import convert

BLOCKS, TOKENS = 10, 4
CPU = torch.device("cpu")
EVERYTHING = range(3), range(4)


def a_memory(
    dtype: str = "float32",
    shard: Shard | None = None,
    dims: tuple[int, int] = (2, 2),
    compute: torch.dtype | None = None,
) -> TorchKVMemory:
    spec = KVSpec(num_layers=3, num_kv_heads=4, key_dim=dims[0], value_dim=dims[1], dtype=dtype)
    shard = shard or Shard(*EVERYTHING)
    return TorchKVMemory(spec, shard, BLOCKS, TOKENS, CPU, compute=compute)


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
    dtype=st.sampled_from(list(DTYPE_BYTES)),
    dims=st.sampled_from([(2, 2), (5, 3), (7, 0)]),
)
def test_what_is_written_is_read_and_nothing_else_changes(
    blocks: list[int], layers: range, heads: range, dtype: str, dims: tuple[int, int]
) -> None:
    memory = a_memory(dtype, dims=dims)
    before = a_payload(memory, BLOCKS, *EVERYTHING)
    memory.write(range(BLOCKS), *EVERYTHING, before)
    payload = a_payload(memory, len(blocks), layers, heads)
    memory.write(blocks, layers, heads, payload)
    assert bytes(memory.read(blocks, layers, heads)) == payload
    untouched = a_memory(dtype, dims=dims)
    untouched.write(range(BLOCKS), *EVERYTHING, before)
    for layer in EVERYTHING[0]:
        for head in EVERYTHING[1]:
            rest = sorted(
                set(range(BLOCKS)) - set(blocks if layer in layers and head in heads else ())
            )
            if rest:
                cell = rest, range(layer, layer + 1), range(head, head + 1)
                assert bytes(memory.read(*cell)) == bytes(untouched.read(*cell))


def test_layers_see_the_canonical_form() -> None:
    memory = a_memory(dims=(2, 3))
    run = memory.spec.slice_bytes(2 * TOKENS, 2, 1) // 4
    memory.write([7, 2], range(1, 3), range(1, 2), np.arange(run, dtype=np.float32).data)
    runs = [(28, 4), (8, 4)]
    seen = [
        plane[:, 1]
        for layer in memory.layers[1:]
        for plane in (layer.keys(runs), layer.values(runs))
    ]
    assert torch.equal(torch.cat([s.flatten() for s in seen]), torch.arange(run).float())


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
    data = a_payload(memory, 1, *EVERYTHING)
    memory.write([1], *EVERYTHING, payload(data))
    assert bytes(memory.read([1], *EVERYTHING)) == data


def test_a_payload_of_another_size_is_refused() -> None:
    memory = a_memory()
    data = a_payload(memory, 2, *EVERYTHING)
    with pytest.raises(InvalidArgument, match=f"has {len(data)} bytes; allowed: exactly"):
        memory.write([1], *EVERYTHING, data)
    with pytest.raises(InvalidArgument, match="has 0 bytes"):
        memory.write([1], *EVERYTHING, b"")


@pytest.mark.parametrize("blocks", [[], [BLOCKS], [-1]])
def test_blocks_that_do_not_exist_are_refused(blocks: list[int]) -> None:
    with pytest.raises(InvalidArgument, match=r"blocks are .*; allowed: some of 0 to 9"):
        a_memory().read(blocks, *EVERYTHING)


def test_more_kv_than_memory_is_refused() -> None:
    spec = KVSpec(num_layers=100, num_kv_heads=100, key_dim=128, value_dim=128, dtype="float32")
    shard = Shard(range(100), range(100))
    with pytest.raises(ConfigError, match=r"kv_tokens asks for .* at most this machine's memory"):
        TorchKVMemory(spec, shard, 1 << 20, 1 << 10, CPU)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_pool_may_lie_in_memory_of_somebody_else(dtype: str) -> None:
    spec = KVSpec(num_layers=3, num_kv_heads=4, key_dim=2, value_dim=2, dtype=dtype)
    shard = Shard(*EVERYTHING)
    buffer = bytearray(pool_bytes(spec, shard, BLOCKS, TOKENS))
    one = TorchKVMemory(spec, shard, BLOCKS, TOKENS, CPU, memoryview(buffer))
    rows = torch.randn(TOKENS, 4, 2)
    one.layers[2].store(None, [(0, 5 * TOKENS, TOKENS)], rows, -rows)
    # A pool of somebody who maps the same bytes.
    other = TorchKVMemory(spec, shard, BLOCKS, TOKENS, CPU, memoryview(buffer))
    assert bytes(other.read([5], *EVERYTHING)) == bytes(one.read([5], *EVERYTHING))
    assert torch.equal(other.layers[2].keys([(20, 4)]), -other.layers[2].values([(20, 4)]))
    assert any(buffer)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dtype", "step"), [("int8", 0.5 / 127), ("float8_e4m3", 2.0**-4)])
def test_quantized_rows_come_back_within_half_a_step(
    dtype: str, step: float, compute: torch.dtype
) -> None:
    """A step is the scale for int8, and an eighth of the value for float8_e4m3."""
    memory = a_memory(dtype, dims=(24, 5), compute=compute)
    layer = memory.layers[1]
    keys, values = torch.randn(6, 4, 24).to(compute), 1e3 * torch.randn(6, 4, 5).to(compute)
    keys[2] = 0
    places = [(0, 9, 3), (3, 30, 3)]
    layer.store(None, places, keys, values)
    slots = torch.tensor([9, 10, 11, 30, 31, 32])
    scattered = a_memory(dtype, dims=(24, 5), compute=compute).layers[1]
    scattered.store(slots, places, keys, values)
    rounding = 0.0 if compute == torch.float32 else 2.0**-7
    for back, given_rows, again in (
        (layer.keys, keys, scattered.keys), (layer.values, values, scattered.values),
    ):  # fmt: skip
        found = back([(9, 3), (30, 3)])
        assert found.dtype == compute
        assert torch.equal(found, again([(9, 3), (30, 3)]))
        exact = given_rows.transpose(0, 1).unsqueeze(0).float()
        largest = exact.abs().amax(-1, keepdim=True)
        allowed = (step + rounding) * (largest if dtype == "int8" else exact.abs() + largest / 448)
        assert bool(((found.float() - exact).abs() <= 1.001 * allowed).all())
    assert not layer.keys([(11, 1)]).any(), "a row of zeros stays one"


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3", "bfloat16"])
@pytest.mark.parametrize("magnitude", [1e-44, 1e-3, 1.0, 1e30])
def test_rows_are_rounded_as_a_transfer_rounds_them(dtype: str, magnitude: float) -> None:
    """So that KV that was narrowed on arrival is what this engine would have stored."""
    wide, narrow = a_memory("float32", dims=(24, 8)), a_memory(dtype, dims=(24, 8),
                                                               compute=torch.float32)  # fmt: skip
    keys, values = magnitude * torch.randn(8, 4, 24), magnitude * torch.randn(8, 4, 8)
    for memory in (wide, narrow):
        for layer in memory.layers:
            layer.store(None, [(0, 8, 8)], keys, values)
    exact = wide.read([2, 3], *EVERYTHING)
    expected = convert(exact, wide.spec, narrow.spec, (3, 4, 8))
    assert bytes(narrow.read([2, 3], *EVERYTHING)) == bytes(expected)


def test_every_float8_has_its_value() -> None:
    memory = a_memory("float8_e4m3", dims=(256, 0))
    elements = torch.arange(256, dtype=torch.uint8)
    numbers = elements.view(torch.float8_e4m3fn).float()
    row = bytes(elements.tolist()) + torch.tensor(0.5).numpy().tobytes()
    memory.write([4], range(1), range(1), row * TOKENS)
    found = memory.layers[0].keys([(4 * TOKENS, 1)])[0, 0, 0]
    assert torch.equal(found[numbers.isfinite()], 0.5 * numbers[numbers.isfinite()])


def test_ties_go_to_the_even_neighbour_and_nothing_leaves_the_range() -> None:
    row = torch.tensor([[127.0, 0.5, 1.5, -2.5]])
    assert quantize_kv(row, torch.int8)[0, :4].view(torch.int8).tolist() == [127, 0, 2, -2]
    row = torch.tensor([[448.0, 17.0, 19.0, -448.0]])
    elements = quantize_kv(row, torch.float8_e4m3fn)[0, :4].view(torch.float8_e4m3fn)
    assert elements.float().tolist() == [448.0, 16.0, 20.0, -448.0]


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("bfloat16", 2.0**127)])
def test_what_a_narrower_dtype_cannot_hold_becomes_its_largest(dtype: str, largest: float) -> None:
    memory = a_memory(dtype, compute=torch.float32)
    rows = torch.full((1, 4, 2), 3e38)
    memory.layers[0].store(None, [(0, 3, 1)], rows, -rows)
    kept = memory.layers[0].keys([(3, 1)])
    assert kept.dtype == torch.float32
    assert bool(kept.isfinite().all())
    assert float(kept.min()) >= largest


@given(st.lists(st.integers(0, 30), unique=True))
def test_runs_are_maximal_and_complete(blocks: list[int]) -> None:
    runs = list(block_runs(blocks))
    assert [b for first, n in runs for b in range(first, first + n)] == blocks
    assert all(a + n != b for (a, n), (b, _) in pairwise(runs))
