"""The forward pass: a mixed batch of prompt chunks and single tokens through all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from eastwest.ports import StepRow
from engine.architecture import ArchitectureConfig
from engine.batch import BatchPlanner
from engine.comm import Comm
from engine.kv_memory import TorchKVMemory
from engine.layers import Flow, Layer
from engine.linear import Linear
from engine.norm import RmsNorm
from engine.rotary import inverse_frequencies, rotation


class Model:
    """One rank's layers, whose weights and KV are on one device.

    embedding: ``[vocab, hidden]`` in the file's dtype. norm and head: of the last stage.
    """

    def __init__(
        self,
        config: ArchitectureConfig,
        embedding: torch.Tensor,
        layers: Sequence[Layer],
        norm: RmsNorm,
        head: Linear,
        kv: TorchKVMemory,
        dtype: torch.dtype,
        comm: Comm,
    ) -> None:
        self._config = config
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self._comm = comm
        self._like = torch.empty(0, dtype=dtype, device=kv.device)
        self._frequencies = inverse_frequencies(config).to(kv.device)
        windows = frozenset(layer.attention.window for layer in layers)
        self._planner = BatchPlanner(kv.block_tokens, config.group, windows, self._like)

    def logits(self, rows: Sequence[StepRow]) -> torch.Tensor:
        """Run a step, writing its KV: ``[rows that sample, vocab]`` float32."""
        batch = self._planner.plan(rows)
        ends = [row.start + len(row.tokens) for row in rows]
        assert max(ends) <= self._config.context_tokens, "a row ends beyond the model's context"
        embedded = F.embedding(batch.tokens, self._embedding)
        hidden = embedded.to(self._like.device, self._like.dtype)
        cos, sin = rotation(batch.positions, self._frequencies, hidden.dtype)
        flows = []
        for tile in batch.tiles:
            at = slice(tile.first, tile.first + tile.count)
            flows.append(Flow(tile, hidden[at], cos[at], sin[at]))
        for layer in self._layers[:-1]:
            for flow in flows:
                queries = layer.attention.project(flow)
                segments = flow.tile.segments[layer.attention.window]
                layer.attention.mix(flow.hidden, queries, segments)
                layer.ffn.add_to(flow.hidden)
        sampled = torch.cat([_finish(self._layers[-1], flow) for flow in flows])
        return self._head(self._norm(sampled)).float()


def _finish(layer: Layer, flow: Flow) -> torch.Tensor:
    """The last layer: ``[sampled tokens, hidden]``. Of the others only the KV is needed."""
    queries = layer.attention.project(flow)
    hidden = flow.hidden[flow.tile.sampled]
    if len(hidden):
        layer.attention.mix(hidden, queries, flow.tile.last[layer.attention.window])
        layer.ffn.add_to(hidden)
    return hidden
