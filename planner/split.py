"""A way to serve: its pools, and what they do. Values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from eastwest.layout import ParallelLayout


class Mode(enum.StrEnum):
    """How requests are served. Conditional: prompts that are short to compute are computed where
    they decode, the others in a prefill pool."""

    AGGREGATED = "aggregated"
    DISAGGREGATED = "disaggregated"
    CONDITIONAL = "conditional"


@dataclass(frozen=True, slots=True)
class Targets:
    """What a share `percentile` of requests must stay within."""

    ttft_s: float
    tpot_s: float
    percentile: float = 0.9


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas of one role. batch: mean sequences that decode on one replica, 0 where none does.
    load: share of the rate at which the pool would miss the targets."""

    role: str
    layout: ParallelLayout
    replicas: int
    chunk_tokens: int
    batch: float
    load: float

    @property
    def devices(self) -> int:
        return self.replicas * self.layout.world_size


@dataclass(frozen=True, slots=True)
class Split:
    """Pools at `rate`, the highest within the targets, in requests per second.

    ttft_s, tpot_s: at the percentile of the targets. osl: mean answer tokens. bound: the pool or
    link that ends it. link_bytes_per_s: of KV between pools, in all; link_limit: what the links
    carry. local_tokens: prompts of up to so many tokens to compute stay where they decode.
    """

    mode: Mode
    pools: tuple[Pool, ...]
    rate: float
    ttft_s: float
    tpot_s: float
    tpot_mean_s: float
    osl: float
    bound: str
    link_bytes_per_s: float = 0.0
    link_limit_bytes_per_s: float = 0.0
    local_tokens: float = 0.0
    prompt_share: float = 0.0

    @property
    def devices(self) -> int:
        return sum(pool.devices for pool in self.pools)

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens of the whole deployment."""
        return self.rate * self.osl

    @property
    def tokens_per_s_per_device(self) -> float:
        """Over all devices of all pools."""
        return self.tokens_per_s / self.devices

    @property
    def tokens_per_s_per_user(self) -> float:
        return 1 / self.tpot_s

    @property
    def name(self) -> str:
        """``3P1D``, or ``4x`` of aggregated replicas."""
        if self.mode is Mode.AGGREGATED:
            return f"{self.pools[0].replicas}x"
        return f"{self.pools[0].replicas}P{self.pools[1].replicas}D"
