"""What fits: weights and KV on one rank, and how many tokens that leaves room for."""

from __future__ import annotations

import math

from eastwest.layout import ParallelLayout
from planner.hardware import Device
from planner.model_shape import ModelShape
from planner.precision import Precision, bytes_of

# Left for activations, workspaces, graphs and fragments.
RESERVE = 0.10


def weights_per_rank(model: ModelShape, layout: ParallelLayout, precision: Precision) -> float:
    """Bytes of weights on the fullest rank."""
    tp, layers = layout.tp, math.ceil(model.layers / layout.pp)
    sparse = min(model.sparse_layers, layers)
    attention = layers * attention_params_of_rank(model, tp) * bytes_of(precision.attention)
    dense = (layers - sparse) * model.dense_ffn_params / tp
    dense += sparse * (model.shared_params / tp + model.router_params)
    ranks = layout.tp * layout.dp if layout.ep > 1 else layout.tp
    count = 0 if model.experts is None else model.experts.count
    experts = sparse * count * model.expert_params / ranks * bytes_of(precision.experts)
    # With stages the first has the embedding, and the last the output head, tied or not.
    ends = model.embedding_params if layout.pp == 1 else model.head_params
    embedding = ends / tp * bytes_of(precision.head)
    return attention + dense * bytes_of(precision.ffn) + experts + embedding


def kv_per_token(model: ModelShape, layout: ParallelLayout, precision: Precision) -> float:
    """Bytes that one token of a long context adds to one rank of its group (windows have no
    more to keep once they are full)."""
    whole = sum(layers for window, layers in model.window_groups() if window is None)
    share = kv_heads_share(model, layout.tp)
    per_layer = model.kv_elements * share * bytes_of(precision.kv)
    index = 0.0 if model.indexer is None else model.indexer.layers * model.indexer.dim
    return (whole * per_layer + index) * _fullest_stage(model, layout)


def kv_of_sequence(
    model: ModelShape, layout: ParallelLayout, precision: Precision, tokens: float
) -> float:
    """Bytes that one sequence of `tokens` tokens keeps on one rank of its group."""
    share = kv_heads_share(model, layout.tp)
    per_layer = model.kv_elements * share * bytes_of(precision.kv)
    kept = sum(
        layers * (tokens if window is None else min(tokens, window))
        for window, layers in model.window_groups()
    )
    index = 0.0 if model.indexer is None else model.indexer.layers * model.indexer.dim * tokens
    return (kept * per_layer + index) * _fullest_stage(model, layout)


def sequences_that_fit(
    model: ModelShape,
    layout: ParallelLayout,
    precision: Precision,
    device: Device,
    tokens: float,
    reserve: float = RESERVE,
) -> float:
    """How many sequences of `tokens` tokens a replica (all its groups) holds; 0 or less where the
    weights alone do not fit."""
    free = device.memory.bytes * (1 - reserve) - weights_per_rank(model, layout, precision)
    return layout.dp * free / kv_of_sequence(model, layout, precision, max(tokens, 1.0))


def kv_heads_share(model: ModelShape, tp: int) -> float:
    """Which share of a token's KV one of `tp` tensor-parallel ranks holds: replicated heads where
    tp exceeds them, the whole of a latent."""
    return max(1 / tp, 1 / model.kv_heads)


def attention_params_of_rank(model: ModelShape, tp: int) -> float:
    """Projections on one tensor-parallel rank: KV heads are replicated where tp exceeds them, and
    the projections to a latent are on every rank."""
    if model.latent is None:
        heads = model.heads / tp + max(model.kv_heads / tp, 1)
        return 2 * model.hidden * model.head_dim * heads
    c = model.latent
    down = model.hidden * (c.rank + c.rope_dim + (c.query_rank or 0))
    return down + (model.attention_params - down) / tp


def _fullest_stage(model: ModelShape, layout: ParallelLayout) -> float:
    """The share of the layers that the stage with the most of them has."""
    return math.ceil(model.layers / layout.pp) / model.layers
