"""What was seen at one rate: samples of requests, and what they come to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eastwest.timing import Timing, TtftParts
from eastwest.types import Slo

# Of the requests, in order of arrival, those before this share warm the system up.
WARM_UP = 0.1
PARTS = ("admission", "queue", "reservation", "prefill", "delivery")
PERCENTILES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MEDIAN = PERCENTILES.index(0.5)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that ended well; seconds. parts: see `TtftParts`, which sum to ttft_s. exposed_s:
    of the KV transfer. cached: prompt tokens that were not computed."""

    at_s: float
    ttft_s: float
    tpot_s: float
    parts: tuple[float, ...]
    exposed_s: float
    prompt: int
    output: int
    cached: int

    def keeps(self, slo: Slo) -> bool:
        """Whether it kept both targets."""
        return self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s

    @staticmethod
    def of(at_s: float, timing: Timing, prompt: int, output: int, computed: int) -> Sample:
        """From what a request was told of its timing."""
        first, second = timing.ttft, timing.second
        tpot_s = (timing.e2e_ns - first.total_ns) / 1e9 / (output - 1) if output > 1 else 0.0
        return Sample(
            at_s, first.total_ns / 1e9, tpot_s, _parts(first),
            0.0 if second is None else second.exposed_transfer_ns / 1e9,
            prompt, output, prompt - min(computed, prompt),
        )  # fmt: skip


def _parts(first: TtftParts) -> tuple[float, ...]:
    return tuple(getattr(first, f"{part}_ns") / 1e9 for part in PARTS)


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a split. requests: that count, after those that warm up; failed: of them, those
    without an answer. attained: share that kept both targets; missed_ttft, missed_tpot: share that
    did not keep the one. ttft_s, tpot_s: at `PERCENTILES`, of the answered. parts_s: mean, of TTFT.
    tokens_per_s: of answers, while requests came. busy: share of the time that workers of a role
    were in steps, where that is known. stopped: it was broken off, since too many had missed."""

    split: str
    rate: float
    seed: int
    requests: int
    failed: int
    attained: float
    missed_ttft: float
    missed_tpot: float
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    parts_s: tuple[float, ...]
    exposed_s: float
    cached_share: float
    tokens_per_s: float
    busy: Mapping[str, float] = field(default_factory=dict)
    stopped: bool = False

    @property
    def interval(self) -> tuple[float, float]:
        """Of `attained`, 95 % (Wilson 1927): what so many requests leave open."""
        n, p, z = self.requests, self.attained, 1.96
        if not n:
            return 0.0, 1.0
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def point_of(
    split: str,
    rate: float,
    seed: int,
    *,
    asked_s: Sequence[float],
    samples: Sequence[Sample],
    slo: Slo,
    busy: Mapping[str, float] | None = None,
    stopped: bool = False,
) -> Point:
    """asked_s: when each request of the run was sent, answered or not."""
    order = sorted(asked_s)
    warm_s = order[int(WARM_UP * len(order))] if order else 0.0
    counted = [s for s in samples if s.at_s >= warm_s]
    requests = sum(at_s >= warm_s for at_s in order)
    span_s = max((order[-1] - warm_s) if order else 0.0, 1e-9)
    late = sum(s.ttft_s > slo.ttft_s for s in counted)
    slow = sum(s.tpot_s > slo.tpot_s for s in counted)
    kept = sum(s.keeps(slo) for s in counted)
    failed = requests - len(counted)
    prompt = sum(s.prompt for s in counted)
    return Point(
        split, rate, seed, requests, failed,
        kept / requests if requests else 0.0,
        (late + failed) / requests if requests else 0.0,
        slow / requests if requests else 0.0,
        _percentiles([s.ttft_s for s in counted]),
        _percentiles([s.tpot_s for s in counted]),
        tuple(_mean([s.parts[i] for s in counted]) for i in range(len(PARTS))),
        _mean([s.exposed_s for s in counted]),
        sum(s.cached for s in counted) / prompt if prompt else 0.0,
        sum(s.output for s in counted) / span_s,
        dict(busy or {}), stopped,
    )  # fmt: skip


def _percentiles(values: Sequence[float]) -> tuple[float, ...]:
    order = sorted(values)
    if not order:
        return (0.0,) * len(PERCENTILES)
    return tuple(order[min(int(p * len(order)), len(order) - 1)] for p in PERCENTILES)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
