"""Replays a trace of requests against a SIMULATED cluster, and says what they saw.

Prompts are made so that equal leading blocks of the trace are equal leading tokens: what was seen
before is found in the caches of the replicas, as it would be.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from eastwest.clock import ns
from eastwest.config import Config, KVConfig, PoolConfig, RouterConfig
from eastwest.errors import ConfigError
from eastwest.layout import KVSpec
from eastwest.types import Role, SamplingParams, Slo
from planner.cost import CostModel
from planner.memory import kv_per_token
from planner.serving import PlannedCosts
from planner.traces import TraceRow
from router.decision_log import Write
from router.placement import PlacementPolicy
from router.requests import Request
from sim.cluster import Cluster, Seen, Shape
from sim.engine import StepTime, cost_of
from sim.prompt import HASHED_TOKENS, TracePrompt
from sim.virtual_loop import VirtualClock, VirtualLoop

# Blocks of the trace's own size: a paged KV of smaller ones would be found no differently.
BLOCK_TOKENS = HASHED_TOKENS
_DEADLINE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the requests of a replay saw. Times in virtual seconds, shares of all requests.

    busy: share of the time that the replicas of each role were in steps, until the last request
    came. events: what the scheduler was told.
    """

    requests: int
    completed: int
    span_s: float
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    cached_share: float
    events: int
    busy: dict[str, float]

    def attained(self, ttft_s: float, tpot_s: float) -> float:
        """Share of requests that met both targets."""
        met = sum(
            1
            for ttft, tpot in zip(self.ttft_s, self.tpot_s, strict=True)
            if ttft <= ttft_s and tpot <= tpot_s
        )
        return met / self.requests

    def percentile(self, name: str, percentile: float) -> float:
        """Of ``ttft_s`` or ``tpot_s``, over completed requests."""
        values: Sequence[float] = sorted(getattr(self, name))
        return values[min(int(percentile * len(values)), len(values) - 1)] if values else 0.0

    @property
    def ttft_mean_s(self) -> float:
        return statistics.fmean(self.ttft_s) if self.ttft_s else 0.0

    @property
    def tpot_mean_s(self) -> float:
        return statistics.fmean(self.tpot_s) if self.tpot_s else 0.0


def cluster_shape(
    cost: CostModel,
    replicas: tuple[tuple[Role, int], ...],
    *,
    step_tokens: int = 8192,
    running_max: int = 256,
    kv_tokens: int | None = None,
    router: Mapping[str, Any] | None = None,
) -> Shape:
    """A deployment of replicas that each are what `cost` says. kv_tokens: of each; what its
    devices have room for where None. router: settings of its section."""
    model, device = cost.model, cost.device
    ranks = cost.layout.world_size
    room = kv_tokens or int(
        device.memory.bytes * 0.5 / kv_per_token(model, cost.layout, cost.precision)
    )
    if room < BLOCK_TOKENS:
        raise ConfigError(f"a replica has room for {room} tokens of KV; allowed: {BLOCK_TOKENS}")
    return Shape(
        replicas,
        num_blocks=room // BLOCK_TOKENS,
        pool=PoolConfig(step_tokens=step_tokens, running_max=running_max, waiting_max=100_000),
        kv=_spec(cost),
        link_bytes_per_s=device.scale_out.bytes_per_s * device.efficiency.link * ranks,
        message_s=1e-4,
        config=Config(
            router=RouterConfig(
                **{"queue_max": 1_000_000, "active_max": 100_000, **(router or {})}
            ),
            kv=KVConfig(block_tokens=BLOCK_TOKENS),
        ),
        costs=PlannedCosts(lambda worker: cost),
    )


def replay(
    rows: Iterable[TraceRow],
    shape: Shape,
    step_time: Callable[[Role], StepTime],
    *,
    seed: int = 0,
    speed: float = 1.0,
    policy: PlacementPolicy | None = None,
    write: Write | None = None,
    slo: Slo | None = None,
    observe: Callable[[Seen], None] | None = None,
) -> Replayed:
    """Run a trace to its end. speed: how much faster than recorded requests come. write: takes the
    entries of the router's decision log. slo: what requests ask for. observe: told of each request,
    at the end. Deterministic."""
    loop = VirtualLoop()

    async def run() -> Replayed:
        rng = random.Random(seed)
        cluster = Cluster(shape, step_time, VirtualClock(loop), rng, policy, write=write)
        cluster.start()
        for number, (at_s, row) in enumerate(_spread(rows, rng)):
            await asyncio.sleep(max(0.0, at_s / speed - loop.time()))
            cluster.submit(_request(number, row, cluster.clock.now_ns(), slo or Slo()))
        busy = _busy(cluster, loop.time())
        await cluster.quiet()
        result = _result(cluster, loop.time(), busy)
        if observe is not None:
            for seen in cluster.seen.values():
                observe(seen)
        await cluster.close()
        return result

    return loop.run(run())


def by_cost(cost: CostModel) -> Callable[[Role], StepTime]:
    """All replicas alike."""
    seconds = cost_of(cost)
    return lambda role: seconds


def _busy(cluster: Cluster, span_s: float) -> dict[str, float]:
    busy: dict[str, list[float]] = {}
    for replica in cluster.replicas.values():
        share = min(1.0, replica.steps.busy_s / span_s) if span_s else 0.0
        busy.setdefault(replica.info.role.value, []).append(share)
    return {role: statistics.fmean(shares) for role, shares in busy.items()}


def _result(cluster: Cluster, span_s: float, busy: dict[str, float]) -> Replayed:
    done: list[Seen] = list(cluster.finished())
    outcomes = [seen.outcome for seen in done]
    prompt = sum(len(seen.request.prompt) for seen in done)
    computed = sum(getattr(o, "usage").computed_tokens for o in outcomes)  # noqa: B009
    return Replayed(
        requests=len(cluster.seen),
        completed=len(done),
        span_s=span_s,
        ttft_s=tuple(seen.ttft_s for seen in done),
        tpot_s=tuple(seen.tpot_s for seen in done),
        cached_share=1 - computed / prompt if prompt else 0.0,
        events=cluster.events,
        busy=busy,
    )


def _request(number: int, row: TraceRow, now_ns: int, slo: Slo) -> Request:
    return Request(
        request_id=f"r{number}",
        salt="",
        session_id="",
        prompt=cast("tuple[int, ...]", TracePrompt.of(number, row)),
        sampling=SamplingParams(temperature=0.0, seed=0, ignore_eos=True),
        max_tokens=row.osl,
        accepted_ns=now_ns,
        deadline_ns=now_ns + ns(_DEADLINE_S),
        slo=slo,
    )


def _spread(rows: Iterable[TraceRow], rng: random.Random) -> list[tuple[float, TraceRow]]:
    """Requests of one tick, at random until the next one, by time; without times, once a second."""
    timed = [(row.at_s if row.at_s is not None else float(i), row) for i, row in enumerate(rows)]
    timed.sort(key=lambda item: item[0])
    if not timed:
        return []
    begin = timed[0][0]
    ticks = sorted({at for at, _ in timed})
    following = dict(zip(ticks, [*ticks[1:], ticks[-1]], strict=True))
    moved = [(at - begin + rng.random() * (following[at] - at), row) for at, row in timed]
    return sorted(moved, key=lambda item: item[0])


def _spec(cost: CostModel) -> KVSpec:
    model = cost.model
    dtype = {"fp32": "float32", "fp8": "float8_e4m3", "int8": "int8"}.get(
        cost.precision.kv, "bfloat16"
    )
    if model.latent is not None:
        return KVSpec(model.layers, 1, model.kv_elements, 0, dtype)
    return KVSpec(model.layers, model.kv_heads, model.head_dim, model.head_dim, dtype)
