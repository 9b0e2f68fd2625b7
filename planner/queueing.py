"""Waiting: what a queue adds to a latency at a percentile.

A pool of k replicas behind one queue is taken as G/G/k: the probability of waiting is Erlang's C,
the mean wait is Allen and Cunneen's approximation

    W = C(k, rho) / (k mu - lambda) * (ca^2 + cs^2) / 2

(Allen, Probability, Statistics and Queueing Theory, 1990, ch. 5), and a wait, where there is one,
is exponential. Exact for M/M/k. Times in seconds, rates per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Service:
    """Time that one server spends on a request: mean, and its variation (standard deviation over
    mean)."""

    mean_s: float
    cv: float

    @staticmethod
    def of(times: Sequence[tuple[float, float]]) -> Service:
        """From ``(seconds, share)`` of each class."""
        mean = sum(t * w for t, w in times)
        square = sum(t * t * w for t, w in times)
        return Service(mean, math.sqrt(max(square / (mean * mean) - 1, 0.0)) if mean else 0.0)


@dataclass(frozen=True, slots=True)
class Wait:
    """Distribution of a wait: `probability` of any, and then exponential of `mean_s`."""

    probability: float
    mean_s: float

    def within(self, seconds: float) -> float:
        """Probability that it is at most `seconds`."""
        if seconds < 0:
            return 0.0
        if self.mean_s <= 0:
            return 1.0
        return 1 - self.probability * math.exp(-seconds / self.mean_s)


NO_WAIT = Wait(0.0, 0.0)


def wait(servers: int, rate: float, service: Service, arrival_cv: float) -> Wait | None:
    """Of requests that come at `rate`; None where they come faster than they are served."""
    if rate <= 0:
        return NO_WAIT
    load = rate * service.mean_s
    if load >= servers:
        return None
    probability = erlang_c(servers, load)
    variation = (arrival_cv**2 + service.cv**2) / 2
    mean = service.mean_s / (servers - load) * variation
    # More bursty or even than Poisson: how often one waits, and not for how long alone, changes.
    return Wait(probability, mean)


def erlang_c(servers: int, load: float) -> float:
    """Probability that all servers of an M/M/k are busy, for `load` = lambda / mu < k."""
    blocked = 1.0  # Erlang's B by its recurrence, which neither over- nor underflows
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


def latency_at(percentile: float, latencies: Sequence[tuple[float, float]], waiting: Wait) -> float:
    """The latency that a share `percentile` of requests stay within, where a request's latency is
    its class's ``(seconds, share)`` after a wait."""
    low, high = 0.0, max(t for t, _ in latencies) + 1e-6
    while attained(high, latencies, waiting) < percentile:
        low, high = high, high * 2
        if high > 1e9:
            return math.inf
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if attained(middle, latencies, waiting) < percentile:
            low = middle
        else:
            high = middle
    return high


def attained(target: float, latencies: Sequence[tuple[float, float]], waiting: Wait) -> float:
    """Share of requests whose wait and latency are within `target`."""
    return sum(w * waiting.within(target - t) for t, w in latencies)
