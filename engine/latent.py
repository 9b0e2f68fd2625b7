"""Multi-head latent attention over paged KV.

The KV of a token is one row: its normed latent and its one rotated key, which all heads share.
Queries are brought into the latent's space (their product with the matrix that would make keys of
it), so that attention runs over the rows as they lie, as over one KV head; what comes out is
latents, and one product a head makes values of them. So a step reads a row of a few hundred
elements a token, whatever the number of heads.

Making keys and values of all heads from the latents of a long prompt first was measured, too: for
tiles of 512 tokens on a CPU it takes about as long (from a fifth less in float32 to a tenth more
in bfloat16), so there is one form.

Shapes: T tokens of a tile, N query heads, C latent, R rotated dims, P dims without positions, V of
a head's value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.attention import Segment, attend
from engine.comm import Group
from engine.kv_memory import LayerKV
from engine.layers import Flow, add_shared
from engine.linear import HeadwiseLinear, Linear
from engine.norm import RmsNorm
from engine.rotary import rotate


class LatentAttention:
    """Is an `Attention`.

    down: the queries' latent (or the queries, where `query_up` is None), the latent and the
    shared key below each other. query_norm, query_up: from the queries' latent to the queries,
    each ``P + R`` dims. absorb: ``[N, P, C]``; values: ``[N, C, V]``. scale: of the scores.
    """

    window = None

    def __init__(
        self,
        norm: RmsNorm,
        down: Linear,
        query_norm: RmsNorm | None,
        query_up: Linear | None,
        latent_norm: RmsNorm,
        absorb: HeadwiseLinear,
        values: HeadwiseLinear,
        output: Linear,
        kv: LayerKV,
        *,
        num_heads: int,
        latent_dim: int,
        plain_dim: int,
        rope_dim: int,
        value_dim: int,
        scale: float,
        group: Group,
    ) -> None:
        self._norm = norm
        self._down = down
        self._query_norm = query_norm
        self._query_up = query_up
        self._latent_norm = latent_norm
        self._absorb = absorb
        self._values = values
        self._output = output
        self._kv = kv
        self._heads = num_heads
        self._latent = latent_dim
        self._plain = plain_dim
        self._rope = rope_dim
        self._value = value_dim
        self._scale = scale
        self._group = group

    def project(self, flow: Flow) -> torch.Tensor:
        """See `Attention`; queries are ``[T, 1, N, C + R]``."""
        down = self._down(self._norm(flow.hidden))
        width = down.shape[1] - self._latent - self._rope
        query, latent = down[:, :width], down[:, width : width + self._latent]
        key = down[:, width + self._latent :]
        shared_key = rotate(key.unsqueeze(1), flow.cos, flow.sin)
        rows = torch.cat([self._latent_norm(latent).unsqueeze(1), shared_key], dim=2)
        self._kv.store(flow.tile.slots, flow.tile.runs, rows, None)
        if self._query_norm is not None and self._query_up is not None:
            query = self._query_up(self._query_norm(query))
        heads = query.view(len(query), self._heads, self._plain + self._rope)
        absorbed = heads.new_empty(len(heads), self._heads, self._latent + self._rope)
        self._absorb(heads[..., : self._plain], absorbed[..., : self._latent])
        absorbed[..., self._latent :] = rotate(heads[..., self._plain :], flow.cos, flow.sin)
        return absorbed.unsqueeze(1)

    def mix(self, hidden: torch.Tensor, queries: torch.Tensor, segments: Sequence[Segment]) -> None:
        attended = attend(queries, self._kv, segments, self._scale)
        latents = attended.view(len(attended), self._heads, self._latent + self._rope)
        made = latents.new_empty(len(latents), self._heads, self._value)
        self._values(latents[..., : self._latent], made)
        add_shared(hidden, self._output, made.flatten(1), self._group)
