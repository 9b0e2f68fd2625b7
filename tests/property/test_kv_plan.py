"""Reshard plans and frame cutting, over any two layouts.

1. Every (destination rank, layer, head) is sent exactly once, by a rank that holds it.
2. Source ranks that hold the same KV share one destination's slice evenly.
3. Between equal layouts without replicas, each rank sends its own shard to its own counterpart.
4. Total bytes are the minimum: those of each destination rank once, of which `explain` gives an
   account that adds up.
5. Frames tile their box exactly once and none is larger than allowed.
6. Where whole layers fit into a frame, only layers are cut.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eastwest.errors import ConfigError
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from kv_transfer.explain import Side, explain
from kv_transfer.plan import frames, reshard

untimed = settings(deadline=None)  # machines may be busy


@st.composite
def specs(draw: st.DrawFn) -> KVSpec:
    """MHA and GQA (several heads), MQA (one), MLA (one latent, no value)."""
    heads = draw(st.sampled_from((1, 2, 3, 4, 6, 8)))
    value_dim = draw(st.sampled_from((0, 4))) if heads == 1 else 4
    return KVSpec(draw(st.integers(1, 13)), heads, 4, value_dim, "bfloat16")


def layouts(spec: KVSpec) -> st.SearchStrategy[ParallelLayout]:
    heads = spec.num_kv_heads
    fitting = [tp for tp in range(1, 17) if tp % heads == 0 or heads % tp == 0]
    return st.builds(
        ParallelLayout, tp=st.sampled_from(fitting), pp=st.integers(1, min(4, spec.num_layers))
    )


@st.composite
def pairs(draw: st.DrawFn) -> tuple[KVSpec, ParallelLayout, ParallelLayout]:
    spec = draw(specs())
    return spec, draw(layouts(spec)), draw(layouts(spec))


@untimed
@given(pairs())
def test_every_destination_cell_is_sent_exactly_once_by_a_holder(
    pair: tuple[KVSpec, ParallelLayout, ParallelLayout],
) -> None:
    spec, src, dst = pair
    sent: Counter[tuple[int, int, int]] = Counter()
    for part in reshard(src, dst, spec):
        held = shard_of(spec, src, part.src_rank)
        assert set(part.layers) <= set(held.layers)
        assert set(part.heads) <= set(held.heads)
        assert part.layers
        assert part.heads
        sent.update((part.dst_rank, layer, head) for layer in part.layers for head in part.heads)
    wanted = Counter(
        (rank, layer, head)
        for rank in range(dst.world_size)
        for layer in shard_of(spec, dst, rank).layers
        for head in shard_of(spec, dst, rank).heads
    )
    assert sent == wanted


@untimed
@given(pairs())
def test_replicated_sources_share_the_sending(
    pair: tuple[KVSpec, ParallelLayout, ParallelLayout],
) -> None:
    spec, src, dst = pair
    layers_sent: dict[tuple[int, range, range], Counter[int]] = defaultdict(Counter)
    for part in reshard(src, dst, spec):
        held = shard_of(spec, src, part.src_rank)
        key = (part.dst_rank, held.layers, held.heads)
        layers_sent[key][part.src_rank] += len(part.layers)
    for (_, layers, heads), counts in layers_sent.items():
        replicas = [
            rank
            for rank in range(src.world_size)
            if shard_of(spec, src, rank).layers == layers
            and shard_of(spec, src, rank).heads == heads
        ]
        shares = [counts[rank] for rank in replicas]
        assert max(shares) - min(shares) <= 1


@untimed
@given(pairs())
def test_total_bytes_are_the_minimum_and_the_explanation_adds_up(
    pair: tuple[KVSpec, ParallelLayout, ParallelLayout],
) -> None:
    spec, src, dst = pair
    quantized = replace(spec, dtype="int8")
    told = explain(Side(src, spec, 16), Side(dst, quantized, 64))
    minimum = sum(
        quantized.slice_bytes(1, len(shard.layers), len(shard.heads))
        for shard in (shard_of(spec, dst, rank) for rank in range(dst.world_size))
    )
    assert told.bytes_per_token == told.minimum_bytes_per_token == minimum
    assert sum(link.bytes_per_token for link in told.links) == minimum
    assert sum(rank.bytes_per_token for rank in told.senders) == minimum
    assert [rank.bytes_per_token for rank in told.receivers] == [
        quantized.slice_bytes(1, len(rank.shard.layers), len(rank.shard.heads))
        for rank in told.receivers
    ]
    ends = Counter((link.src_rank, link.dst_rank) for link in told.links)
    assert set(ends.values()) == {1}
    for ranks, end in ((told.senders, 0), (told.receivers, 1)):
        fans = Counter(pair[end] for pair in ends)
        assert {rank.rank: rank.fan for rank in ranks if rank.fan} == fans


@untimed
@given(specs().flatmap(lambda spec: st.tuples(st.just(spec), layouts(spec))))
def test_equal_layouts_without_replicas_send_straight_across(
    case: tuple[KVSpec, ParallelLayout],
) -> None:
    spec, layout = case
    assume(layout.tp <= spec.num_kv_heads)
    plan = reshard(layout, layout, spec)
    assert [part.src_rank for part in plan] == [part.dst_rank for part in plan]
    for part in plan:
        shard = shard_of(spec, layout, part.dst_rank)
        assert (part.layers, part.heads) == (shard.layers, shard.heads)


def ranges(longest: int) -> st.SearchStrategy[range]:
    return st.tuples(st.integers(0, 5), st.integers(1, longest)).map(
        lambda pair: range(pair[0], pair[0] + pair[1])
    )


@untimed
@given(specs(), ranges(6), ranges(9), ranges(4), st.integers(1, 5), st.integers(1, 20_000))
def test_frames_tile_their_box_within_the_allowed_size(
    spec: KVSpec, layers: range, blocks: range, heads: range, block_tokens: int, frame_bytes: int
) -> None:
    cell = spec.slice_bytes(block_tokens, 1, 1)
    assume(cell <= frame_bytes)
    cut = list(
        frames(layers, blocks, heads, spec=spec, block_tokens=block_tokens, frame_bytes=frame_bytes)
    )
    seen = Counter(
        (layer, block, head)
        for part in cut
        for layer in part.layers
        for block in part.blocks
        for head in part.heads
    )
    assert seen == Counter((la, b, h) for la in layers for b in blocks for h in heads)
    for part in cut:
        tokens = len(part.blocks) * block_tokens
        assert spec.slice_bytes(tokens, len(part.layers), len(part.heads)) <= frame_bytes
    if spec.slice_bytes(len(blocks) * block_tokens, 1, len(heads)) <= frame_bytes:
        assert all(part.blocks == blocks and part.heads == heads for part in cut)


def test_a_block_that_fits_no_frame_is_refused() -> None:
    spec = KVSpec(1, 1, 64, 64, "float32")
    with pytest.raises(ConfigError, match="allowed: at least 8192"):
        list(frames(range(1), range(1), range(1), spec=spec, block_tokens=16, frame_bytes=8191))


def test_a_layout_that_does_not_fit_the_model_is_refused() -> None:
    spec = KVSpec(2, 3, 64, 64, "float32")
    with pytest.raises(ConfigError):
        reshard(ParallelLayout(tp=2), ParallelLayout(), spec)
