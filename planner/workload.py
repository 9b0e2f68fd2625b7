"""What is asked of a deployment: how long prompts and answers are, what of them is cached, and how
requests arrive. Distributions, not means: a few classes of requests with their share each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist

from eastwest.errors import ConfigError

CLASSES_MAX = 64
TOKENS_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests alike: `isl` prompt tokens of which `cached` are KV that is there already, and
    `osl` answer tokens. share: of all requests."""

    isl: float
    osl: float
    cached: float
    share: float

    @property
    def fresh(self) -> float:
        """Prompt tokens to compute; at least the last one."""
        return max(self.isl - self.cached, 1.0)


@dataclass(frozen=True, slots=True)
class Workload:
    """Classes whose shares sum to 1. arrival_cv: standard deviation of the time between requests
    over its mean; 1 is Poisson, more is bursty."""

    classes: tuple[RequestClass, ...]
    arrival_cv: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigError("a workload has no requests; allowed: at least one class")
        for c in self.classes:
            if not (
                1 <= c.isl <= TOKENS_MAX and 1 <= c.osl <= TOKENS_MAX and 0 <= c.cached <= c.isl
            ):
                raise ConfigError(
                    f"a request class has isl {c.isl:g}, osl {c.osl:g}, cached {c.cached:g}; "
                    f"allowed: isl and osl from 1 to {TOKENS_MAX}, cached from 0 to isl"
                )
        if not 0 < self.arrival_cv <= 20:
            raise ConfigError(f"arrival_cv is {self.arrival_cv:g}; allowed: above 0, to 20")

    @property
    def isl(self) -> float:
        """Mean prompt length."""
        return sum(c.isl * c.share for c in self.classes)

    @property
    def osl(self) -> float:
        """Mean answer length."""
        return sum(c.osl * c.share for c in self.classes)

    @property
    def fresh(self) -> float:
        """Mean prompt tokens to compute."""
        return sum(c.fresh * c.share for c in self.classes)

    @property
    def context(self) -> float:
        """Mean tokens of context of a sequence that decodes, over its decode time: each class
        counts by its answer's length, half of which is there in the mean."""
        return sum((c.isl + c.osl / 2) * c.osl * c.share for c in self.classes) / self.osl

    @property
    def held(self) -> float:
        """Mean tokens for which a decoding sequence needs room."""
        return sum((c.isl + c.osl) * c.osl * c.share for c in self.classes) / self.osl

    @property
    def longest(self) -> float:
        return max(c.isl + c.osl for c in self.classes)

    def scaled(self, isl: float = 1.0, osl: float = 1.0) -> Workload:
        """The same with prompts and answers longer or shorter by a factor."""
        return replace(
            self,
            classes=tuple(
                RequestClass(max(1.0, c.isl * isl), max(1.0, c.osl * osl), c.cached * isl, c.share)
                for c in self.classes
            ),
        )


def steady(
    isl: float, osl: float, *, reuse: float = 0.0, spread: float = 0.0, arrival_cv: float = 1.0
) -> Workload:
    """Lengths about a mean: all alike, or log-normal with standard deviation ``spread * mean``.

    reuse: share of each prompt whose KV is there already.
    """
    if not 0 <= reuse < 1:
        raise ConfigError(f"the reused share of prompts is {reuse:g}; allowed: from 0, below 1")
    if not 0 <= spread <= 5:
        raise ConfigError(f"the spread of lengths is {spread:g}; allowed: 0 to 5 times the mean")
    prompts, answers = ((_lognormal(spread, n) if spread else (1.0,)) for n in (5, 3))
    share = 1 / (len(prompts) * len(answers))
    classes = tuple(
        RequestClass(max(1.0, isl * a), max(1.0, osl * b), max(1.0, isl * a) * reuse, share)
        for a in prompts
        for b in answers
    )
    return Workload(classes, arrival_cv, f"isl {isl:g}, osl {osl:g}")


def from_requests(
    requests: Sequence[tuple[float, float, float]], arrival_cv: float = 1.0, source: str = ""
) -> Workload:
    """From single requests ``(isl, osl, cached)``: grouped by computed tokens, then by answer
    length, into at most `CLASSES_MAX` classes that keep all means."""
    if not requests:
        raise ConfigError(f"{source or 'the trace'} has no requests; allowed: at least one")
    rows = sorted(requests, key=lambda r: r[0] - r[2])
    side = int(math.sqrt(CLASSES_MAX))
    classes = []
    for part in _parts(rows, side):
        for group in _parts(sorted(part, key=lambda r: r[1]), side):
            n = len(group)
            means = [sum(r[i] for r in group) / n for i in range(3)]
            classes.append(RequestClass(means[0], max(1.0, means[1]), means[2], n / len(rows)))
    return Workload(tuple(classes), arrival_cv, source)


def _parts(
    rows: Sequence[tuple[float, float, float]], count: int
) -> list[Sequence[tuple[float, float, float]]]:
    """Runs of about equal length, none empty."""
    count = min(count, len(rows))
    edges = [round(i * len(rows) / count) for i in range(count + 1)]
    return [rows[a:b] for a, b in pairwise(edges) if b > a]


def _lognormal(spread: float, count: int) -> tuple[float, ...]:
    """`count` equally likely values of mean 1 and about the standard deviation `spread`."""
    sigma = math.sqrt(math.log1p(spread * spread))
    normal = NormalDist()
    points = [math.exp(sigma * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    mean = sum(points) / len(points)
    return tuple(p / mean for p in points)
