"""The forward pass of one rank: a mixed batch of prompt chunks and single tokens.

With one stage, all tiles of the batch go through a layer before the next one begins. With several,
a tile goes through all layers of its stage and on to the next stage, while this one turns to the
tile behind it: the micro-batches of a pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from eastwest.layout import ParallelLayout
from eastwest.ports import StepProgress, StepRow
from engine.architecture import ArchitectureConfig
from engine.batch import TILE_ROWS, Batch, BatchPlanner
from engine.comm import Comm
from engine.kv_memory import TorchKVMemory
from engine.layers import Flow, Layer
from engine.linear import Linear
from engine.norm import RmsNorm
from engine.rank_slice import RankSlice
from engine.rotary import inverse_frequencies, rotation

# A pipeline has about so many micro-batches a stage in a step, of no fewer tokens than this.
MICRO_BATCHES = 2
MICRO_ROWS_MIN = 16


class Model:
    """One rank's layers, whose weights and KV are on one device.

    embedding: ``[vocab, hidden]`` in the file's dtype, None but on the first stage. norm, head:
    None but on the last.
    """

    def __init__(
        self,
        config: ArchitectureConfig,
        part: RankSlice,
        embedding: torch.Tensor | None,
        layers: Sequence[Layer],
        norm: RmsNorm | None,
        head: Linear | None,
        kv: TorchKVMemory,
        dtype: torch.dtype,
        comm: Comm,
        layout: ParallelLayout,
        rank: int,
    ) -> None:
        self._config = config
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self._comm = comm
        self._layout = layout
        self._rank = rank
        self._num_blocks = kv.num_blocks
        self._experts_kept = len(part.experts)
        self._shard_layers = kv.shard.layers
        self._like = torch.empty(0, dtype=dtype, device=kv.device)
        self._frequencies = inverse_frequencies(config).to(kv.device)
        windows = frozenset(layer.attention.window for layer in layers)
        group = len(part.query_heads) // len(part.kv_heads)
        self._planner = BatchPlanner(kv.block_tokens, group, windows, self._like)

    def logits(
        self, rows: Sequence[StepRow], progress: StepProgress | None = None
    ) -> torch.Tensor | None:
        """Run a step, writing its KV: ``[rows that sample, vocab]`` float32 on the leader.

        progress: see `StepProgress`; rows of other groups stay at their start.
        """
        own = self._own(rows)
        told = None if progress is None else _Told(progress, rows, self._groups(rows), self._group)
        rounds = self._rounds(rows)
        sampled = None
        if own:
            sampled = self._run(own, told, rounds)
        else:
            self._idle(rounds)
        if not self._leads_stage_end:
            return None
        logits = None if sampled is None else self._vocabulary(sampled)
        return self._at_leader(rows, logits) if self._layout.dp > 1 else logits

    def expert_tokens(self) -> tuple[int, ...]:
        """Pairs of token and expert computed so far for each expert kept, over all layers."""
        total = torch.zeros(self._experts_kept, dtype=torch.long, device=self._like.device)
        for layer in self._layers:
            loads = layer.ffn.expert_loads()
            if loads is not None:
                total += loads
        return tuple(total.tolist())

    @property
    def _group(self) -> int:
        return self._layout.group(self._rank)

    @property
    def _leads_stage_end(self) -> bool:
        return self._head is not None

    def _groups(self, rows: Sequence[StepRow]) -> list[int]:
        return [row.blocks[0] // self._num_blocks for row in rows]

    def _own(self, rows: Sequence[StepRow]) -> Sequence[StepRow]:
        """The rows of this rank's group, with blocks as the rank counts them."""
        if self._layout.dp == 1:
            return rows
        first = self._group * self._num_blocks
        return [
            replace(row, blocks=[block - first for block in row.blocks])
            for row, group in zip(rows, self._groups(rows), strict=True)
            if group == self._group
        ]

    def _rounds(self, rows: Sequence[StepRow]) -> int:
        """Tiles of the group that has most of them, in each of which it exchanges tokens with the
        ranks of all groups; 0 where groups have nothing to exchange."""
        if self._layout.dp == 1 or not any(layer.ffn.exchanges for layer in self._layers):
            return 0
        tokens = [0] * self._layout.dp
        for row, group in zip(rows, self._groups(rows), strict=True):
            tokens[group] += len(row.tokens)
        return max(-(-count // self._tile_rows(count)) for count in tokens)

    def _tile_rows(self, tokens: int) -> int:
        stages = self._layout.pp
        if stages == 1:
            return TILE_ROWS
        return min(TILE_ROWS, max(MICRO_ROWS_MIN, -(-tokens // (MICRO_BATCHES * stages))))

    def _idle(self, rounds: int) -> None:
        """Take part in a step of other groups, for whose tokens this rank may keep experts."""
        if self._layout.pp == 1:
            for layer in self._layers:
                self._idle_in([layer], rounds)
        else:
            self._idle_in(self._layers, rounds)

    def _idle_in(self, layers: Sequence[Layer], rounds: int) -> None:
        nothing = self._like.new_empty(0, self._config.hidden_size)
        for _ in range(rounds):
            for layer in layers:
                if layer.ffn.exchanges:
                    layer.ffn.add_to(nothing)

    def _run(self, rows: Sequence[StepRow], told: _Told | None, rounds: int) -> torch.Tensor | None:
        """Through this rank's layers; ``[sampled, hidden]`` on the last stage."""
        ends = [row.start + len(row.tokens) for row in rows]
        assert max(ends) <= self._config.context_tokens, "a row ends beyond the model's context"
        tokens = sum(len(row.tokens) for row in rows)
        batch = self._planner.plan(rows, self._tile_rows(tokens))
        if self._layout.pp == 1:
            return self._by_layer(self._flows(batch, self._embed(batch)), told, rounds)
        return self._by_tile(batch, told, rounds)

    def _embed(self, batch: Batch) -> torch.Tensor:
        assert self._embedding is not None
        embedded = F.embedding(batch.tokens, self._embedding)
        return embedded.to(self._like.device, self._like.dtype)

    def _flows(self, batch: Batch, hidden: torch.Tensor) -> list[Flow]:
        cos, sin = rotation(
            batch.positions, self._frequencies, hidden.dtype, self._config.rope.amplitude
        )
        flows = []
        for tile in batch.tiles:
            at = slice(tile.first, tile.first + tile.count)
            flows.append(Flow(tile, hidden[at], cos[at], sin[at]))
        return flows

    def _by_layer(self, flows: Sequence[Flow], told: _Told | None, rounds: int) -> torch.Tensor:
        for index, layer in enumerate(self._layers[:-1]):
            for flow in flows:
                _through(layer, flow)
            self._idle_in([layer], rounds - len(flows))
            if told is not None:
                told.layer_done(self._shard_layers[index])
        sampled = torch.cat([_finish(self._layers[-1], flow) for flow in flows])
        self._idle_in(self._layers[-1:], rounds - len(flows))
        if told is not None:
            told.layer_done(self._shard_layers[-1])
        return sampled

    def _by_tile(self, batch: Batch, told: _Told | None, rounds: int) -> torch.Tensor | None:
        tp, world = self._layout.tp, self._comm.world
        first, last = self._embedding is not None, self._head is not None
        if first:
            hidden = self._embed(batch)
        else:
            hidden = self._like.new_empty(len(batch.tokens), self._config.hidden_size)
        sampled = []
        for flow in self._flows(batch, hidden):
            if not first:
                world.receive(flow.hidden, self._rank - tp)
            for layer in self._layers[:-1]:
                _through(layer, flow)
            if last:
                sampled.append(_finish(self._layers[-1], flow))
            else:
                _through(self._layers[-1], flow)
                world.send(flow.hidden, self._rank + tp)
            if told is not None:
                told.tile_done(self._shard_layers, flow.tile.first + flow.tile.count)
        self._idle_in(self._layers, rounds - len(batch.tiles))
        return torch.cat(sampled) if last else None

    def _vocabulary(self, sampled: torch.Tensor) -> torch.Tensor:
        """``[sampled, vocab]`` float32, from the rows of the head that each rank has."""
        assert self._norm is not None
        assert self._head is not None
        logits = self._head(self._norm(sampled)).float()
        tensor = self._comm.tensor
        if tensor.size == 1 or not len(sampled):
            return logits
        width = -(-self._config.vocab_size // tensor.size)
        padded = F.pad(logits, (0, width - logits.shape[1]))
        return torch.cat(tensor.all_gather(padded), dim=1)[:, : self._config.vocab_size]

    def _at_leader(
        self, rows: Sequence[StepRow], logits: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Bring the logits of all groups to the leader, in the order of `rows`."""
        layout, world = self._layout, self._comm.world
        if layout.tp_rank(self._rank):
            return None
        if self._rank != layout.leader:
            if logits is not None and len(logits):
                world.send(logits, layout.leader)
            return None
        groups = [group for row, group in zip(rows, self._groups(rows), strict=True) if row.sample]
        result = self._like.new_empty(len(groups), self._config.vocab_size, dtype=torch.float32)
        for group in range(layout.dp):
            places = [i for i, g in enumerate(groups) if g == group]
            if not places:
                continue
            if group == 0:
                assert logits is not None
                theirs = logits
            else:
                theirs = result.new_empty(len(places), result.shape[1])
                world.receive(theirs, group * layout.group_size + layout.leader)
            result[places] = theirs
        return result


class _Told:
    """Says how far a step is. Rows of this group lie end to end in the batch."""

    def __init__(
        self, progress: StepProgress, rows: Sequence[StepRow], groups: Sequence[int], own: int
    ) -> None:
        self._progress = progress
        self._starts = [row.start for row in rows]
        self._lengths = [
            len(row.tokens) if group == own else 0 for row, group in zip(rows, groups, strict=True)
        ]

    def layer_done(self, layer: int) -> None:
        self._progress(range(layer, layer + 1), self._ends(sum(self._lengths)))

    def tile_done(self, layers: range, tokens: int) -> None:
        self._progress(layers, self._ends(tokens))

    def _ends(self, tokens: int) -> list[int]:
        ends = []
        for start, length in zip(self._starts, self._lengths, strict=True):
            taken = min(length, tokens)
            ends.append(start + taken)
            tokens -= taken
        return ends


def _through(layer: Layer, flow: Flow) -> None:
    queries = layer.attention.project(flow)
    layer.attention.mix(flow.hidden, queries, flow.tile.segments[layer.attention.window])
    layer.ffn.add_to(flow.hidden)


def _finish(layer: Layer, flow: Flow) -> torch.Tensor:
    """The last layer: ``[sampled tokens, hidden]``. Of the others only the KV is needed."""
    queries = layer.attention.project(flow)
    hidden = flow.hidden[flow.tile.sampled]
    if len(hidden):
        layer.attention.mix(hidden, queries, flow.tile.last[layer.attention.window])
    if len(hidden) or layer.ffn.exchanges:
        layer.ffn.add_to(hidden)
    return hidden
