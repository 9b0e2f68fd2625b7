"""Paged KV in host memory: what is written is read, wherever the blocks lie.

1. A write changes exactly the named tokens, layers and heads, and reading them gives it back.
2. How many neighbours the blocks have makes no difference: each token can be found on its own.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest import paged_kv
from eastwest.layout import KVSpec, Shard
from eastwest.testing.kv_memory import ArrayKVMemory

SPEC = KVSpec(num_layers=5, num_kv_heads=4, key_dim=3, value_dim=2, dtype="float16")
SHARD = Shard(range(1, 4), range(2, 4))
NUM_BLOCKS = 12


def parts(whole: range) -> st.SearchStrategy[range]:
    """Non-empty sub-ranges."""
    return st.tuples(
        st.integers(whole.start, whole.stop - 1), st.integers(whole.start, whole.stop - 1)
    ).map(lambda ends: range(min(ends), max(ends) + 1))


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, list[int], range, range, range]:
    """Block size, blocks (neighbours or not), layers, heads and tokens."""
    size = draw(st.integers(1, 5))
    blocks = draw(
        st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=NUM_BLOCKS, unique=True)
    )
    if draw(st.booleans()):
        blocks = sorted(blocks)
    tokens = draw(parts(range(len(blocks) * size)))
    return size, blocks, draw(parts(SHARD.layers)), draw(parts(SHARD.heads)), tokens


@pytest.mark.parametrize("slices_max", [0, 2, 1000], ids=["blocks", "either", "slices"])
@settings(deadline=None)
@given(runs())
def test_a_write_is_read_back_token_by_token_and_changes_nothing_else(
    slices_max: int, run: tuple[int, list[int], range, range, range]
) -> None:
    size, blocks, layers, heads, tokens = run
    memory = ArrayKVMemory(SPEC, SHARD, NUM_BLOCKS, size)
    memory.fill(1)
    one_by_one = ArrayKVMemory(SPEC, SHARD, NUM_BLOCKS, size)
    one_by_one.buffer[...] = memory.buffer
    count = SPEC.slice_bytes(len(tokens), len(layers), len(heads))
    payload = np.random.default_rng(2).integers(0, 256, count, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged_kv, "_SLICES_MAX", slices_max)
        memory.write(blocks, layers, heads, payload.data, tokens)
        assert bytes(memory.read(blocks, layers, heads, tokens)) == payload.tobytes()
    # The same, cell by cell: [layer][K, V][head][token][row].
    at = 0
    for layer in layers:
        for plane in one_by_one.planes:
            for head in heads:
                for token in tokens:
                    slot = blocks[token // size] * size + token % size
                    row = plane[layer - SHARD.layers.start, head - SHARD.heads.start, slot]
                    row[...] = payload[at : at + len(row)]
                    at += len(row)
    assert (memory.buffer == one_by_one.buffer).all()
