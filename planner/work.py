"""What a step computes and moves, component by component, before any device is named.

Counts follow from the sizes of `planner.model_shape`: a multiply-add is 2 FLOPs, weights are read
once for all tokens of a step, and KV once for each sequence. Activations between components are
left out: an ideal kernel keeps them on the chip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.cost import Row, attended, picked
from planner.model_shape import ModelShape
from planner.precision import Precision, bytes_of


@dataclass(frozen=True, slots=True)
class Work:
    """One component over all layers, sequences and devices.

    dtype: the format of its weights, or of the keys that it scores. Attention over KV has no
    weights; `kv_bytes` are those that it reads and writes.
    """

    name: str
    dtype: str
    flops: float
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0

    @property
    def moved_bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes


def intensity(work: Iterable[Work]) -> float:
    """FLOPs for each byte that is moved."""
    parts = tuple(work)
    return sum(w.flops for w in parts) / sum(w.moved_bytes for w in parts)


def step_work(model: ModelShape, precision: Precision, rows: Sequence[Row]) -> tuple[Work, ...]:
    """A step of `rows` through the whole model."""
    tokens = sum(row.new * row.count for row in rows)
    sampled = sum(row.count for row in rows if row.samples)
    sparse = model.sparse_layers
    projections = model.layers * model.attention_params
    parts = [
        _matmul("attention projections", projections, tokens, precision.attention),
        *attention_work(model, precision, rows),
    ]
    if sparse < model.layers:
        parts.append(dense_ffn_work(model, precision, tokens, model.layers - sparse))
    parts += experts_work(model, precision, tokens, sparse)
    if sampled:
        parts.append(_matmul("output head", model.head_params, sampled, precision.head))
    return tuple(parts)


def attention_work(
    model: ModelShape, precision: Precision, rows: Sequence[Row]
) -> tuple[Work, ...]:
    """Scores and values over KV; and the index that picks from it, in sparse attention.

    In 8 bits where KV is of fp8; keys of an index are of 8 bits.
    """
    dtype = precision.kv if precision.kv in ("fp8", "fp32") else "bf16"
    flops = elements = index_flops = index_bytes = 0.0
    index = model.indexer
    for row in rows:
        dims = model.prefill_attended_dims if row.new > 1 else model.attended_dims
        for window, layers in model.window_groups():
            pairs, read = attended(row.new, row.past, window)
            if index is not None:
                pairs, read = picked(row.new, row.past, pairs, read, index.top_k)
            flops += row.count * layers * 2 * dims * pairs
            elements += row.count * layers * (read + row.new) * model.kv_elements
        if index is not None:
            pairs, read = attended(row.new, row.past, None)
            index_flops += row.count * index.layers * 2 * index.heads * index.dim * pairs
            index_bytes += row.count * index.layers * (read + row.new) * index.dim
    scores = Work("attention over KV", dtype, flops, kv_bytes=elements * bytes_of(precision.kv))
    if index is None:
        return (scores,)
    return scores, Work("attention index", "fp8", index_flops, kv_bytes=index_bytes)


def dense_ffn_work(model: ModelShape, precision: Precision, tokens: float, layers: int) -> Work:
    """Feed-forward networks of `layers` dense layers: ``3 D F`` parameters each, 2 without a
    gate."""
    return _matmul("feed-forward", layers * model.dense_ffn_params, tokens, precision.ffn)


def experts_work(
    model: ModelShape, precision: Precision, tokens: float, layers: int
) -> tuple[Work, ...]:
    """Mixtures of `layers` sparse layers: each token computes with its `top_k` experts, and those
    that any token chose are read."""
    experts = model.experts
    if experts is None or not layers:
        return ()
    shared = layers * (model.shared_params + model.router_params)
    flops = 2 * tokens * layers * experts.top_k * model.expert_params
    read = layers * experts.touched(tokens) * model.expert_params
    return (
        _matmul("router and shared experts", shared, tokens, precision.ffn),
        Work("experts", precision.experts, flops, read * bytes_of(precision.experts)),
    )


def dense_work(
    params: float, tokens: float, dtype: str, kv_bytes: float = 0.0
) -> tuple[Work, Work]:
    """A model of which only the size is known: `params` parameters that each of `tokens` tokens
    is multiplied with, and `kv_bytes` of KV that the step reads."""
    return _matmul("matmuls", params, tokens, dtype), Work("KV", dtype, 0.0, kv_bytes=kv_bytes)


def _matmul(name: str, params: float, tokens: float, dtype: str) -> Work:
    return Work(name, dtype, 2 * params * tokens, params * bytes_of(dtype))
