"""The two halves of a transformer layer, as the model runs them, and their dense forms.

Shapes: T tokens of a tile, N query heads, H KV heads, G = N / H, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from engine.attention import Segment, attend
from engine.batch import Tile
from engine.comm import Group
from engine.kv_memory import LayerKV
from engine.linear import Linear
from engine.norm import RmsNorm
from engine.rotary import rotate


@dataclass(frozen=True, slots=True)
class Flow:
    """A tile on its way: hidden ``[T, hidden]``, changed in place; cos and sin ``[T, 1, D]``,
    D being the dims that rotate."""

    tile: Tile
    hidden: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


class Attention(Protocol):
    """The first half of a layer, its norm included, and its part of the paged KV.

    window: how many positions a query sees, itself included; None for all.
    """

    @property
    def window(self) -> int | None: ...

    def project(self, flow: Flow) -> torch.Tensor:
        """Write the tile's KV; its queries, ``[T, ...]``."""

    def mix(self, hidden: torch.Tensor, queries: torch.Tensor, segments: Sequence[Segment]) -> None:
        """Add the attention of `segments` to `hidden`, whose rows are theirs in order. Summed
        over the ranks that share the layer."""


class FeedForward(Protocol):
    """The second half of a layer, its norm included.

    exchanges: whether each call is one of all ranks that share its experts, in whatever group they
    are; those that have no tokens call it with none.
    """

    @property
    def exchanges(self) -> bool: ...

    def add_to(self, hidden: torch.Tensor) -> None:
        """``hidden [T, hidden]`` += the network's part, summed over the ranks that share it."""

    def expert_loads(self) -> torch.Tensor | None:
        """``[experts kept]`` int64: pairs of token and expert computed so far; None without."""


@dataclass(frozen=True, slots=True)
class Layer:
    attention: Attention
    ffn: FeedForward


class GroupedAttention:
    """Grouped-query attention with rotary positions. qkv: query, key and value heads below each
    other; qk_norm: over each query and key head, None where the architecture has none."""

    def __init__(
        self,
        norm: RmsNorm,
        qkv: Linear,
        qk_norm: RmsNorm | None,
        output: Linear,
        kv: LayerKV,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int | None,
        group: Group,
    ) -> None:
        self.window = window
        self._norm = norm
        self._qkv = qkv
        self._qk_norm = qk_norm
        self._output = output
        self._kv = kv
        self._heads = num_heads
        self._kv_heads = num_kv_heads
        self._dim = head_dim
        self._group = group

    def project(self, flow: Flow) -> torch.Tensor:
        """See `Attention`; queries are ``[T, H, G, D]``."""
        turned = self._heads + self._kv_heads
        qkv = self._qkv(self._norm(flow.hidden))
        heads = qkv.view(len(qkv), -1, self._dim)
        rotating = heads[:, :turned]
        if self._qk_norm is not None:
            rotating = self._qk_norm(rotating)
        rotated = rotate(rotating, flow.cos, flow.sin)
        tile = flow.tile
        self._kv.store(tile.slots, tile.runs, rotated[:, self._heads :], heads[:, turned:])
        grouped = (len(rotated), self._kv_heads, self._heads // self._kv_heads, self._dim)
        return rotated[:, : self._heads].view(grouped)

    def mix(self, hidden: torch.Tensor, queries: torch.Tensor, segments: Sequence[Segment]) -> None:
        add_shared(hidden, self._output, attend(queries, self._kv, segments), self._group)


class DenseFeedForward:
    """A gated network. gate_up: both halves below each other."""

    exchanges = False

    def __init__(self, norm: RmsNorm, gate_up: Linear, down: Linear, group: Group) -> None:
        self._norm = norm
        self._gate_up = gate_up
        self._down = down
        self._group = group

    def add_to(self, hidden: torch.Tensor) -> None:
        gate, up = self._gate_up(self._norm(hidden)).chunk(2, dim=-1)
        add_shared(hidden, self._down, F.silu(gate).mul_(up), self._group)

    def expert_loads(self) -> None:
        """See `FeedForward`."""


def add_shared(hidden: torch.Tensor, linear: Linear, x: torch.Tensor, group: Group) -> None:
    """``hidden += linear(x)``, of which each member of `group` computes a summand."""
    if group.size == 1:
        linear.add_to(hidden, x)
        return
    part = linear(x)
    group.all_reduce(part)
    hidden.add_(part)
