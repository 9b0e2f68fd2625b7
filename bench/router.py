"""Our router beside its peers, in front of workers that take no time, so that the router is what is
measured.

One load generator asks all of them for the same streams, over HTTP, in turn: so many clients, each
sending its next request when the last has ended. All are up all the time. Our own are asked over
gRPC besides. What peers do not have is absent; what they do otherwise, docs/benchmarks.md says.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.router_load import Load, Shape, grpc_load, http_load
from bench.router_stacks import Absent, Dynamo, Ours, Smg, Stack, VllmRouter

TTFT_GOAL_MS = 2.0
CLIENTS = 64
ROUTERS = (1, 2, 4)
PACE_MS, PACED_CLIENTS = 10.0, 128
_LONG, _SHORT, _SINGLE = Shape(16, 256), Shape(8, 2), Shape(16, 4)
_numbers = itertools.count()

Generate = Callable[..., Awaitable[Load]]


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one stack, and the CPU time that routers and workers took for it."""

    load: Load
    router_s: float
    worker_s: float

    @property
    def cpu_ms(self) -> float:
        """Of the routers, for 1,000 tokens."""
        return 1e6 * self.router_s / self.load.tokens


class Figures:
    """Medians over rounds, by stack and figure."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, stack: str, **figures: float) -> None:
        for figure, value in figures.items():
            self._values[stack, figure].append(value)

    def of(self, stack: str, figure: str) -> float | None:
        values = self._values.get((stack, figure))
        return statistics.median(values) if values else None


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    return asyncio.run(_run(quick))


async def _run(quick: bool) -> list[dict[str, Any]]:
    rounds = 1 if quick else 3
    beside = await _beside(rounds, requests=256 if quick else 512)
    paced = await _paced(rounds, requests=256 if quick else 512)
    growth = await _growth(rounds, requests=256 if quick else 512)
    return [*_beside_rows(beside), *paced, *growth]


async def _beside(rounds: int, requests: int) -> Figures:
    """Everybody in turn."""
    figures, here = Figures(), []
    with ExitStack() as up:
        for stack in (Ours(), Dynamo(), VllmRouter(), Smg()):
            up.callback(stack.close)
            try:
                stack.start()
            except Absent as reason:
                print(f"absent: {reason}")
            else:
                here.append(stack)
                await _measure(stack, figures=Figures(), requests=CLIENTS)
        for _ in range(rounds):
            for stack in here:
                await _measure(stack, figures, requests)
    return figures


async def _measure(stack: Stack, figures: Figures, requests: int) -> None:
    """One round of one stack."""
    ways: list[tuple[str, Generate, Sequence[str]]] = [(stack.name, http_load, stack.http)]
    if stack.grpc:
        ways.append((f"{stack.name} grpc", grpc_load, stack.grpc))
    for name, generate, addresses in ways:
        single = await _load(stack, generate, addresses, _SINGLE, 1, requests // 4)
        long = await _load(stack, generate, addresses, _LONG, CLIENTS, requests)
        short = await _load(stack, generate, addresses, _SHORT, CLIENTS, 4 * requests)
        figures.add(
            name,
            ttft_ms=single.load.ttft_ms,
            tokens_per_s=long.load.tokens_per_s,
            tokens_per_event=long.load.tokens_per_event,
            cpu_ms=long.cpu_ms,
            requests_per_s=short.load.requests_per_s,
        )
    if stack.worker is not None:
        direct = await _load(stack, http_load, [stack.worker], _SINGLE, 1, requests // 4)
        figures.add(stack.name, direct_ms=direct.load.ttft_ms)


async def _load(
    stack: Stack,
    generate: Generate,
    addresses: Sequence[str],
    shape: Shape,
    clients: int,
    requests: int,
) -> Run:
    first = next(_numbers) * 1_000_000
    router_s, worker_s = stack.router_cpu_s(), stack.worker_cpu_s()
    load = await generate(addresses, shape, clients=clients, requests=requests, first=first)
    return Run(load, stack.router_cpu_s() - router_s, stack.worker_cpu_s() - worker_s)


async def _paced(rounds: int, requests: int) -> list[dict[str, Any]]:
    """Workers that take their time, so that no client lags: each token is an event of its own."""
    figures, stack = Figures(), Ours(step_ms=PACE_MS)
    with ExitStack() as up:
        up.callback(stack.close)
        stack.start()
        for _ in range(rounds):
            run = await _load(stack, http_load, stack.http, _LONG, PACED_CLIENTS, requests)
            figures.add(
                "paced",
                tokens_per_s=run.load.tokens_per_s,
                tokens_per_event=run.load.tokens_per_event,
                cpu_ms=run.cpu_ms,
            )
    what = f"at steps of {PACE_MS:g} ms and {PACED_CLIENTS} clients"
    return [
        _row(f"streamed tokens/s {what}", figures.of("paced", "tokens_per_s"), "1/s"),
        _row(f"tokens of one event {what}", figures.of("paced", "tokens_per_event"), ""),
        _row(f"router CPU for 1,000 tokens {what}", figures.of("paced", "cpu_ms"), "ms"),
    ]


async def _growth(rounds: int, requests: int) -> list[dict[str, Any]]:
    """More router processes over the same workers."""
    figures = Figures()
    with ExitStack() as up:
        stacks = {count: Ours(count) for count in ROUTERS}
        for stack in stacks.values():
            up.callback(stack.close)
            stack.start()
        for _ in range(rounds):
            for count, stack in stacks.items():
                long = await _load(stack, http_load, stack.http, _LONG, CLIENTS, requests)
                short = await _load(stack, http_load, stack.http, _SHORT, CLIENTS, 4 * requests)
                figures.add(
                    str(count),
                    tokens_per_s=long.load.tokens_per_s,
                    cpu_ms=long.cpu_ms,
                    requests_per_s=short.load.requests_per_s,
                )
    units = {"tokens_per_s": "1/s", "requests_per_s": "1/s", "cpu_ms": "ms"}
    names = {"tokens_per_s": "streamed tokens/s", "requests_per_s": "short requests/s",
             "cpu_ms": "router CPU for 1,000 tokens"}  # fmt: skip
    return [
        _row(f"{names[figure]}, {count} routers", figures.of(str(count), figure), unit,
             "1 router", figures.of("1", figure))
        for figure, unit in units.items()
        for count in ROUTERS[1:]
    ]  # fmt: skip


def _beside_rows(figures: Figures) -> list[dict[str, Any]]:
    peers = (Dynamo.name, VllmRouter.name, Smg.name, "eastwest grpc")
    rows = []
    for figure, metric, unit in (
        ("tokens_per_s", f"streamed tokens/s, {CLIENTS} clients, 256 out", "1/s"),
        ("requests_per_s", f"short requests/s, {CLIENTS} clients, 2 out", "1/s"),
        ("cpu_ms", "router CPU for 1,000 streamed tokens", "ms"),
        ("tokens_per_event", "tokens of one event when streaming", ""),
    ):
        for peer in peers:
            goal = 1.0 if (figure, peer) == ("tokens_per_s", Dynamo.name) else None
            rows.append(_row(metric, figures.of(Ours.name, figure), unit, peer,
                             figures.of(peer, figure), goal=goal))  # fmt: skip
    for name in (Ours.name, f"{Ours.name} grpc"):
        whole = figures.of(name, "ttft_ms")
        assert whole is not None
        rows.append(_row(f"TTFT of {name}, one request at a time", whole, "ms", "goal",
                         TTFT_GOAL_MS, goal=TTFT_GOAL_MS, met=whole < TTFT_GOAL_MS))  # fmt: skip
    for peer in peers[:3]:
        metric, whole = f"TTFT of {peer}, one request at a time", figures.of(peer, "ttft_ms")
        direct = figures.of(peer, "direct_ms")
        rows.append(_row(metric, whole, "ms", "a worker without it", direct))
    return rows


def _row(
    metric: str,
    value: float | None,
    unit: str,
    against: str | None = None,
    against_value: float | None = None,
    *,
    goal: float | None = None,
    met: bool | None = None,
) -> dict[str, Any]:
    ratio = value / against_value if value and against_value else None
    if goal is not None and met is None and ratio is not None:
        met = ratio >= goal
    return {
        "metric": metric,
        "value": value,
        "unit": unit,
        "against": against,
        "against_value": against_value,
        "ratio": ratio,
        "goal": goal,
        "met": met,
    }
