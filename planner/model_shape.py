"""What a model is to a planner: its sizes, and what follows from them alone.

Parameters, KV and work are counted here and nowhere else. Norms and biases are left out of
parameter counts, as they are of published totals (together below 0.1 %); the input embedding is
counted in memory, and not in work, since a lookup reads one row a token.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import expm1, log1p


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: one latent a token instead of keys and values of each head.

    query_rank: of the queries' own latent, None where they have none. rank: of that of keys and
    values. plain_dim, rope_dim: dims of a query head without and with positions. value_dim: of a
    head.
    """

    query_rank: int | None
    rank: int
    plain_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Indexer:
    """Sparse attention: a small index of each token picks the `top_k` that a query attends to.

    heads, dim: of index queries; keys of the index have one head. layers: how many layers have an
    index of their own; the others use that of the layer before.
    """

    heads: int
    dim: int
    top_k: int
    layers: int


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts. ffn_size: of one expert. shared_size: of the shared ones together.
    layers: how many layers have experts; the others are dense."""

    count: int
    top_k: int
    ffn_size: int
    shared_size: int
    layers: int

    def touched(self, tokens: float) -> float:
        """Experts that `tokens` tokens use between them, routed evenly and independently.

        ``E * (1 - (1 - k/E)^T)``: an expert is missed by a token with probability 1 - k/E.
        """
        return self.count * -_expm1_log1p(-self.top_k / self.count, tokens)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One decoder-only transformer.

    `windows` has one entry a layer: how many positions it sees, None for all. ffn_matrices: 3
    with a gate, 2 without. positions: rows of a learned position embedding. weights: what the
    checkpoint was published in (see `planner.precision`). kv_heads is 1 with a latent.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    vocab: int
    context_tokens: int
    windows: tuple[int | None, ...]
    tied: bool
    ffn_matrices: int = 3
    positions: int = 0
    experts: Experts | None = None
    latent: Latent | None = None
    indexer: Indexer | None = None
    weights: str = "bf16"

    # What one layer weighs, in parameters.

    @property
    def attention_params(self) -> int:
        """Projections of one layer: ``2 D N H + 2 D K H``, or those of the latent."""
        if self.latent is None:
            return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        c = self.latent
        queries = self.heads * (c.plain_dim + c.rope_dim)
        if c.query_rank is None:
            down, up = 0, self.hidden * queries
        else:
            down, up = self.hidden * c.query_rank, c.query_rank * queries
        keys = self.hidden * (c.rank + c.rope_dim) + c.rank * self.heads * c.plain_dim
        values = c.rank * self.heads * c.value_dim
        return down + up + keys + values + self.heads * c.value_dim * self.hidden

    @property
    def dense_ffn_params(self) -> int:
        """The feed-forward network of one dense layer."""
        return self.ffn_matrices * self.hidden * self.ffn_size

    @property
    def expert_params(self) -> int:
        """One expert; 0 for dense models."""
        return (
            0 if self.experts is None else self.ffn_matrices * self.hidden * self.experts.ffn_size
        )

    @property
    def shared_params(self) -> int:
        """The shared experts of one layer together."""
        shared = 0 if self.experts is None else self.experts.shared_size
        return self.ffn_matrices * self.hidden * shared

    @property
    def router_params(self) -> int:
        """What scores the experts of one layer."""
        return 0 if self.experts is None else self.hidden * self.experts.count

    @property
    def sparse_layers(self) -> int:
        return 0 if self.experts is None else self.experts.layers

    # What the model weighs.

    @property
    def head_params(self) -> int:
        """The output head, which every sampled token reads."""
        return self.vocab * self.hidden

    @property
    def embedding_params(self) -> int:
        """Input embedding, positions, and an output head of its own unless tied."""
        return (self.vocab * (1 if self.tied else 2) + self.positions) * self.hidden

    @property
    def body_params(self) -> int:
        """All layers, experts that rest included."""
        resting = 0 if self.experts is None else self.experts.count * self.expert_params
        return self._body(resting)

    @property
    def total_params(self) -> int:
        return self.body_params + self.embedding_params

    @property
    def active_body_params(self) -> int:
        """What one token is multiplied with in the layers."""
        chosen = 0 if self.experts is None else self.experts.top_k * self.expert_params
        return self._body(chosen)

    @property
    def active_params(self) -> int:
        """The same with the output head."""
        return self.active_body_params + self.head_params

    def _body(self, experts: int) -> int:
        sparse = self.sparse_layers
        return (
            self.layers * self.attention_params
            + (self.layers - sparse) * self.dense_ffn_params
            + sparse * (self.router_params + self.shared_params + experts)
        )

    # What a token leaves behind.

    @property
    def kv_elements(self) -> int:
        """Elements that one token adds to the KV of one layer."""
        if self.latent is not None:
            return self.latent.rank + self.latent.rope_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of one token over all layers, windows aside."""
        return self.layers * self.kv_elements

    @property
    def attended_dims(self) -> int:
        """Multiply-adds of one query and one key in one layer, over all heads: keys and values.

        A latent is attended to as it lies (absorbed): its rank and rotary part as keys, its rank
        as values, for every head.
        """
        if self.latent is not None:
            return self.heads * (2 * self.latent.rank + self.latent.rope_dim)
        return self.heads * 2 * self.head_dim

    @property
    def prefill_attended_dims(self) -> int:
        """The same for prompts, where keys and values of a latent are made for each head first."""
        if self.latent is None:
            return self.attended_dims
        c = self.latent
        return self.heads * (c.plain_dim + c.rope_dim + c.value_dim)

    def window_groups(self) -> tuple[tuple[int | None, int], ...]:
        """``(window, how many layers have it)``, those without one first."""
        return _groups(self.windows)


@cache
def _groups(windows: tuple[int | None, ...]) -> tuple[tuple[int | None, int], ...]:
    counts = Counter(windows)
    return tuple(sorted(counts.items(), key=lambda item: (item[0] is not None, item[0] or 0)))


def _expm1_log1p(x: float, times: float) -> float:
    """``(1 + x)^times - 1``, exact where x is tiny; -1 where x is -1."""
    return -1.0 if x <= -1.0 and times > 0 else expm1(times * log1p(x))
