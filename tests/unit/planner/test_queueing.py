"""Queues against textbook values, and against a simulation of single requests."""

from __future__ import annotations

import heapq
import math
import random
from itertools import pairwise
from statistics import fmean

import pytest

from planner.queueing import NO_WAIT, Service, Wait, attained, erlang_c, latency_at, wait


@pytest.mark.parametrize(
    ("servers", "load", "probability"),
    [
        (1, 0.5, 0.5), (1, 0.9, 0.9),  # M/M/1: the load itself
        (2, 1.0, 1 / 3),  # 2 rho^2 / (1 + rho)
        (2, 1.6, 2 * 0.8**2 / 1.8),
        (5, 4.0, 0.5541), (10, 8.0, 0.4092), (10, 9.0, 0.6687),  # tables of Erlang C
    ],
)  # fmt: skip
def test_erlang_c(servers: int, load: float, probability: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(probability, abs=5e-5)


@pytest.mark.parametrize("servers", [1, 3, 17])
@pytest.mark.parametrize("busy", [0.1, 0.5, 0.95])
def test_erlang_c_is_the_sum_that_defines_it(servers: int, busy: float) -> None:
    load = servers * busy
    last = load**servers / math.factorial(servers) / (1 - busy)
    others = sum(load**n / math.factorial(n) for n in range(servers))
    assert erlang_c(servers, load) == pytest.approx(last / (others + last))


def test_erlang_c_holds_for_thousands_of_servers() -> None:
    values = [erlang_c(4096, load) for load in (1.0, 2000.0, 4000.0, 4090.0, 4095.9)]
    assert all(0 <= p <= 1 for p in values)
    assert all(a <= b for a, b in pairwise(values))


@pytest.mark.parametrize("busy", [0.2, 0.6, 0.9])
@pytest.mark.parametrize(("cv", "factor"), [(1.0, 1.0), (0.0, 0.5), (2.0, 2.5)])
def test_one_server_waits_as_pollaczek_and_khinchine_say(
    busy: float, cv: float, factor: float
) -> None:
    """M/M/1, M/D/1 and M/G/1: ``rho/(1-rho) s (1 + cv^2)/2``."""
    waiting = wait(1, busy / 0.25, Service(0.25, cv), 1.0)
    assert waiting is not None
    mean = waiting.probability * waiting.mean_s
    assert mean == pytest.approx(busy / (1 - busy) * 0.25 * factor)


def test_more_than_is_served_has_no_wait_and_nothing_none_to_wait_for() -> None:
    assert wait(2, 8.0, Service(0.25, 1.0), 1.0) is None
    assert wait(2, 0.0, Service(0.25, 1.0), 1.0) == NO_WAIT
    assert NO_WAIT.within(0.0) == 1
    assert NO_WAIT.within(-1e-9) == 0


def test_a_service_of_classes_has_their_moments() -> None:
    service = Service.of([(1.0, 0.5), (3.0, 0.5)])
    assert service.mean_s == 2.0
    assert service.cv == pytest.approx(0.5)
    assert Service.of([(0.3, 0.25)] * 4).cv == pytest.approx(0, abs=1e-6)
    assert Service.of([(0.0, 1.0)]) == Service(0.0, 0.0)


def test_the_latency_at_a_percentile_is_the_one_that_is_attained() -> None:
    latencies, waiting = [(0.1, 0.7), (0.9, 0.3)], Wait(0.6, 0.4)
    for percentile in (0.5, 0.69, 0.9, 0.99, 0.999):
        seconds = latency_at(percentile, latencies, waiting)
        assert attained(seconds, latencies, waiting) >= percentile
        assert attained(seconds * (1 - 1e-5), latencies, waiting) < percentile
    assert latency_at(0.7, latencies, NO_WAIT) == pytest.approx(0.1)
    assert latency_at(0.71, latencies, NO_WAIT) == pytest.approx(0.9)


def test_waits_grow_with_rate_and_shrink_with_servers_at_the_same_load() -> None:
    service, latencies = Service(0.2, 0.5), [(0.2, 1.0)]

    def late(servers: int, busy: float, cv: float = 1.0) -> float:
        waiting = wait(servers, servers * busy / service.mean_s, service, cv)
        assert waiting is not None
        return latency_at(0.9, latencies, waiting)

    assert all(late(4, a) <= late(4, b) for a, b in pairwise((0.1, 0.4, 0.7, 0.9, 0.99)))
    assert all(late(a, 0.9) >= late(b, 0.9) for a, b in pairwise((1, 2, 4, 16, 64)))
    assert late(4, 0.8, 3.0) > late(4, 0.8, 1.0)


def simulated_waits(
    servers: int, rate: float, services: list[tuple[float, float]], seed: int
) -> list[tuple[float, float]]:
    """``(wait, service)`` of 60,000 Poisson arrivals at M/G/k, first come first served, without
    the first tenth."""
    rng = random.Random(seed)
    free = [0.0] * servers
    now, seen = 0.0, []
    times, weights = zip(*services, strict=True)
    for seconds in rng.choices(times, weights, k=60_000):
        now += rng.expovariate(rate)
        start = max(now, heapq.heappop(free))
        heapq.heappush(free, start + seconds)
        seen.append((start - now, seconds))
    return seen[6_000:]


@pytest.mark.parametrize("servers", [1, 4, 16])
@pytest.mark.parametrize("busy", [0.5, 0.8])
@pytest.mark.parametrize(
    "services", [[(0.1, 1.0)], [(0.05, 0.8), (0.3, 0.2)]], ids=["all alike", "two kinds"]
)
def test_waits_are_those_of_simulated_requests(
    servers: int, busy: float, services: list[tuple[float, float]]
) -> None:
    """Mean waits within 15 % of a service's time and the 90th percentile of latency within 15 %:
    both are approximations (exact only for exponential service), and the run is finite."""
    service = Service.of(services)
    rate = servers * busy / service.mean_s
    seen = simulated_waits(servers, rate, services, seed=7)
    waiting = wait(servers, rate, service, 1.0)
    assert waiting is not None
    simulated = fmean(waited for waited, _ in seen)
    predicted = waiting.probability * waiting.mean_s
    assert predicted == pytest.approx(simulated, abs=0.15 * service.mean_s, rel=0.1)
    latency = latency_at(0.9, services, waiting)
    measured = sorted(waited + seconds for waited, seconds in seen)[int(0.9 * len(seen))]
    assert latency == pytest.approx(measured, rel=0.15)
    share = sum(waited + seconds <= latency for waited, seconds in seen) / len(seen)
    assert share >= 0.85  # more where many requests have the very same latency
