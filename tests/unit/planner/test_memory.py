"""What lies on a rank, against what the whole model weighs and keeps."""

from __future__ import annotations

import pytest

from eastwest.layout import KVSpec, ParallelLayout, shard_of
from planner.hardware import find_device
from planner.memory import (
    RESERVE,
    attention_params_of_rank,
    kv_heads_share,
    kv_of_sequence,
    kv_per_token,
    sequences_that_fit,
    weights_per_rank,
)
from planner.models import find_model, model_names
from planner.precision import Precision

BF16 = Precision.named("bf16")
H100 = find_device("h100-sxm")


@pytest.mark.parametrize("name", model_names())
def test_one_rank_has_the_whole_model(name: str) -> None:
    model = find_model(name)
    assert weights_per_rank(model, ParallelLayout(), BF16) == 2 * model.total_params


@pytest.mark.parametrize("name", ["llama-3.1-70b", "qwen3-32b", "mixtral-8x7b", "gpt-oss-120b"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_ranks_have_the_model_between_them(name: str, tp: int) -> None:
    """Routers, which each rank has a copy of, aside."""
    model = find_model(name)
    copies = (tp - 1) * model.sparse_layers * model.router_params
    together = tp * weights_per_rank(model, ParallelLayout(tp=tp), BF16)
    assert together == pytest.approx(2 * (model.total_params + copies), rel=1e-12)


def test_kv_projections_are_copied_where_ranks_exceed_kv_heads() -> None:
    model = find_model("llama-3.1-8b")  # 8 KV heads
    whole = model.layers * 2 * model.hidden * model.head_dim * model.kv_heads
    together = 16 * weights_per_rank(model, ParallelLayout(tp=16), BF16)
    assert together == pytest.approx(2 * (model.total_params + whole), rel=1e-12)


def test_projections_to_a_latent_are_on_every_rank() -> None:
    model = find_model("deepseek-v3")
    down = model.hidden * (512 + 64 + 1536)
    assert attention_params_of_rank(model, 1) == model.attention_params
    ranks = 8 * attention_params_of_rank(model, 8)
    assert ranks == pytest.approx(model.attention_params + 7 * down)


def test_experts_are_shared_by_all_groups_and_the_rest_is_in_each() -> None:
    model = find_model("deepseek-v3")
    one = weights_per_rank(model, ParallelLayout(), BF16)
    apart = weights_per_rank(model, ParallelLayout(dp=32, ep=32), BF16)
    experts = 2 * model.sparse_layers * 256 * model.expert_params
    assert apart == pytest.approx(one - experts * 31 / 32)
    groups = weights_per_rank(model, ParallelLayout(dp=32), BF16)  # no expert parallelism
    assert groups == one


@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-v3"])
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_the_fullest_stage_has_at_least_its_share(name: str, pp: int) -> None:
    model = find_model(name)
    rank = weights_per_rank(model, ParallelLayout(pp=pp), BF16)
    assert 2 * model.total_params / pp <= rank + 2 * model.embedding_params
    assert rank <= 2 * model.total_params
    layers = -(-model.layers // pp)
    spec_share = layers / model.layers
    assert kv_per_token(model, ParallelLayout(pp=pp), BF16) == pytest.approx(
        2 * model.kv_elements_per_token * spec_share
    )


def test_a_tied_embedding_lies_at_both_ends_of_a_pipeline() -> None:
    model = find_model("qwen3-0.6b")
    assert model.tied
    rank = weights_per_rank(model, ParallelLayout(pp=2), BF16)
    assert rank == model.body_params + 2 * model.embedding_params  # half the body, two bytes each


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16, 32])
def test_the_share_of_kv_heads_is_that_of_the_layout_algebra(tp: int) -> None:
    spec = KVSpec(32, 8, 128, 128, "bfloat16")
    shard = shard_of(spec, ParallelLayout(tp=tp), 0)
    assert kv_heads_share(find_model("llama-3.1-8b"), tp) == len(shard.heads) / 8
    assert kv_heads_share(find_model("deepseek-v3"), tp) == 1


def test_windows_bound_what_a_sequence_keeps() -> None:
    model = find_model("gpt-oss-120b")
    layout = ParallelLayout()
    per_layer = 2 * model.kv_elements
    assert kv_of_sequence(model, layout, BF16, 100) == 36 * 100 * per_layer
    assert kv_of_sequence(model, layout, BF16, 10_000) == 18 * (10_000 + 128) * per_layer
    assert kv_per_token(model, layout, BF16) == 18 * per_layer


def test_an_index_of_8_bits_is_kept_beside_the_kv() -> None:
    plain, sparse = find_model("deepseek-v3"), find_model("deepseek-v3.2")
    layout = ParallelLayout()
    more = kv_of_sequence(sparse, layout, BF16, 10) - kv_of_sequence(plain, layout, BF16, 10)
    assert more == 61 * 128 * 10


def test_as_many_sequences_fit_as_free_memory_has_room_for() -> None:
    model, layout = find_model("llama-3.1-8b"), ParallelLayout()
    room = sequences_that_fit(model, layout, BF16, H100, 1000)
    used = 2 * model.total_params + room * 1000 * 2 * model.kv_elements_per_token
    assert used == pytest.approx(H100.memory.bytes * (1 - RESERVE))
    assert sequences_that_fit(model, layout, BF16, H100, 2000) == pytest.approx(room / 2)
    assert sequences_that_fit(find_model("llama-3.1-70b"), layout, BF16, H100, 1) < 0
    groups = sequences_that_fit(model, ParallelLayout(dp=4), BF16, H100, 1000)
    assert groups == pytest.approx(4 * room)
