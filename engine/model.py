"""The forward pass: a mixed batch of prompt chunks and single tokens through all layers.

Shapes: T tokens of the batch, N query heads, H KV heads, D head dim, S sampled rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from eastwest.ports import StepRow
from engine.architecture import ArchitectureConfig
from engine.attention import Segment, SegmentPlanner, Span, attend
from engine.kv_memory import TorchKVMemory
from engine.rotary import inverse_frequencies, rotate, rotation
from engine.weights import LayerWeights, ModelWeights

Segments = Mapping[int | None, Sequence[Segment]]  # by window


@dataclass(frozen=True, slots=True)
class Batch:
    """One step as tensors.

    tokens, positions, slots: ``[T]``. sampled: ``[S]``, the last token of each row that samples.
    segments: all queries. last: those of the sampled tokens alone.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sampled: torch.Tensor
    segments: Segments
    last: Segments


class Model:
    """A model whose weights and KV are on one device."""

    def __init__(
        self,
        config: ArchitectureConfig,
        weights: ModelWeights,
        kv: TorchKVMemory,
        device: torch.device,
    ) -> None:
        self._config = config
        self._weights = weights
        self._kv = kv
        self._device = device
        self._frequencies = inverse_frequencies(config).to(device)
        self._windows = frozenset(config.windows)
        self._pools = [(layer[0], layer[1]) for layer in kv.pool.unbind(0)]

    def batch(self, rows: Sequence[StepRow]) -> Batch:
        """Lay out a step. Rows are checked: each has tokens, and blocks for all of them."""
        size = self._kv.block_tokens
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        spans, last, sampled = [], [], []
        for row in rows:
            end = row.start + len(row.tokens)
            assert row.tokens, "a row needs at least one token"
            assert len(row.blocks) * size >= end, "a row's blocks must cover all its positions"
            assert end <= self._config.context_tokens, "a row ends beyond the model's context"
            spans.append(Span(len(tokens), row.start, len(row.tokens), row.blocks))
            tokens += row.tokens
            positions += range(row.start, end)
            slots += [row.blocks[p // size] * size + p % size for p in range(row.start, end)]
            if row.sample is not None:
                last.append(Span(len(tokens) - 1, end - 1, 1, row.blocks))
                sampled.append(len(tokens) - 1)
        return Batch(
            torch.tensor(tokens, device=self._device),
            torch.tensor(positions, device=self._device),
            torch.tensor(slots, device=self._device),
            torch.tensor(sampled, dtype=torch.long, device=self._device),
            self._segments(spans),
            self._segments(last),
        )

    def logits(self, batch: Batch) -> torch.Tensor:
        """Run the batch, writing its KV; ``[S, vocab]`` float32."""
        embedding = self._weights.embedding
        hidden = F.embedding(batch.tokens, embedding).to(self._device, self._kv.pool.dtype)
        cos, sin = rotation(batch.positions, self._frequencies, hidden.dtype)
        end = len(self._weights.layers) - 1
        for index, layer in enumerate(self._weights.layers):
            hidden = self._layer(index, layer, hidden, cos, sin, batch, final=index == end)
        if not len(batch.sampled):
            return hidden.new_empty(0, self._config.vocab_size, dtype=torch.float32)
        return self._weights.head(self._norm(hidden, self._weights.norm)).float()

    def _layer(
        self,
        index: int,
        layer: LayerWeights,
        hidden: torch.Tensor,
        rotations: tuple[torch.Tensor, torch.Tensor],
        batch: Batch,
        *,
        final: bool,
    ) -> torch.Tensor:
        """``[T, hidden] -> [T, hidden]``, perhaps in place; of the final layer only
        ``[S, hidden]``, since the other tokens are needed for their KV alone."""
        config = self._config
        keys, values = self._pools[index]
        queries = []
        for rows, (cos, sin) in self._tiled(hidden, rotations):
            normed = self._norm(rows, layer.attention_norm)
            heads = layer.qkv(normed).view(len(rows), -1, config.head_dim)
