"""The forward pass: a mixed batch of prompt chunks and single tokens through all layers.

Shapes: T tokens of a tile, S of them sampled, N query heads, H KV heads, G = N / H, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from eastwest.ports import StepRow
from engine.architecture import ArchitectureConfig
from engine.attention import attend
from engine.batch import BatchPlanner, Tile
from engine.kv_memory import TorchKVMemory
from engine.rotary import inverse_frequencies, rotate, rotation
from engine.weights import LayerWeights, ModelWeights


@dataclass(frozen=True, slots=True)
class _Layer:
    """keys, values: the layer's part of the pool, ``[H, slots, D]``."""

    weights: LayerWeights
    keys: torch.Tensor
    values: torch.Tensor
    window: int | None


@dataclass(frozen=True, slots=True)
class _Flow:
    """A tile on its way: hidden ``[T, hidden]``, changed in place; cos and sin ``[T, 1, D]``."""

    tile: Tile
    hidden: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


class Model:
    """A model whose weights and KV are on one device."""

    def __init__(
        self, config: ArchitectureConfig, weights: ModelWeights, kv: TorchKVMemory
    ) -> None:
        self._config = config
        self._weights = weights
        self._pool = kv.pool
        windows = config.windows[kv.shard.layers.start : kv.shard.layers.stop]
        self._layers = [
            _Layer(layer, pool[0], pool[1], window)
            for layer, pool, window in zip(weights.layers, kv.pool, windows, strict=True)
        ]
        self._norm_floor = {
            size: torch.tensor((size * config.norm_eps) ** 0.5, device=kv.pool.device)
            for size in (config.hidden_size, config.head_dim)
        }
        self._frequencies = inverse_frequencies(config).to(kv.pool.device)
        self._planner = BatchPlanner(kv.block_tokens, config.group, frozenset(windows), kv.pool)

    def logits(self, rows: Sequence[StepRow]) -> torch.Tensor:
        """Run a step, writing its KV: ``[rows that sample, vocab]`` float32."""
        batch = self._planner.plan(rows)
        ends = [row.start + len(row.tokens) for row in rows]
        assert max(ends) <= self._config.context_tokens, "a row ends beyond the model's context"
        embedded = F.embedding(batch.tokens, self._weights.embedding)
        hidden = embedded.to(self._pool.device, self._pool.dtype)
        cos, sin = rotation(batch.positions, self._frequencies, hidden.dtype)
        flows = []
        for tile in batch.tiles:
            at = slice(tile.first, tile.first + tile.count)
            flows.append(_Flow(tile, hidden[at], cos[at], sin[at]))
        for layer in self._layers[:-1]:
            for flow in flows:
                queries = self._project(layer, flow)
                attended = attend(
                    queries, layer.keys, layer.values, flow.tile.segments[layer.window]
                )
                self._mix(layer.weights, flow.hidden, attended)
        sampled = torch.cat([self._finish(self._layers[-1], flow) for flow in flows])
        return self._weights.head(self._norm(sampled, self._weights.norm)).float()

    def _finish(self, layer: _Layer, flow: _Flow) -> torch.Tensor:
        """The last layer: ``[S, hidden]``. Of the other tokens only the KV is needed."""
        queries = self._project(layer, flow)
        hidden = flow.hidden[flow.tile.sampled]
        if len(hidden):
            attended = attend(queries, layer.keys, layer.values, flow.tile.last[layer.window])
            self._mix(layer.weights, hidden, attended)
        return hidden

    def _project(self, layer: _Layer, flow: _Flow) -> torch.Tensor:
        """Write the tile's keys and values; its queries, ``[T, H, G, D]``."""
        config, weights = self._config, layer.weights
        turned = config.num_heads + config.num_kv_heads
        qkv = weights.qkv(self._norm(flow.hidden, weights.attention_norm))
        heads = qkv.view(len(qkv), -1, config.head_dim)
        rotating = heads[:, :turned]
        if weights.qk_norm is not None:
            rotating = self._norm(rotating, weights.qk_norm)
        rotated = rotate(rotating, flow.cos, flow.sin)
        flow.tile.store(layer.keys, rotated[:, config.num_heads :])
        flow.tile.store(layer.values, heads[:, turned:])
        grouped = (len(rotated), config.num_kv_heads, config.group, config.head_dim)
        return rotated[:, : config.num_heads].view(grouped)

    def _mix(self, weights: LayerWeights, hidden: torch.Tensor, attended: torch.Tensor) -> None:
        """Add the attention's and the feed-forward network's parts to `hidden`."""
        weights.output.add_to(hidden, attended)
        gate, up = weights.gate_up(self._norm(hidden, weights.ffn_norm)).chunk(2, dim=-1)
        weights.down.add_to(hidden, F.silu(gate).mul_(up))

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root mean square normalisation over the last dim, its statistics in float32.

        ``x / sqrt(mean(x^2) + eps)`` as ``x * sqrt(n) / hypot(norm(x), sqrt(n * eps))``, which
        is few and fast operations; the weights carry the factor ``sqrt(n)``.
        """
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        normed = x / torch.hypot(length, self._norm_floor[x.shape[-1]])
        return normed.to(x.dtype).mul_(weight)
