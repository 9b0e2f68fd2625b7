"""Disaggregated against aggregated serving of the default model, on the same cores.

One prefill and one decode worker stand against two aggregated workers, a thread each, behind the
same router code. Both deployments are up; load goes to one at a time, in alternating runs. The
load is closed-loop: so many clients, each sending its next request when the last has ended.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.launch import Deployment
from eastwest.client import AsyncClient
from eastwest.config import Config, PoolConfig

PROMPT_TOKENS = 512
OUTPUT_TOKENS = 64
CLIENTS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it, in seconds."""

    ttft_s: float
    gaps_s: tuple[float, ...]
    total_s: float


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    return asyncio.run(_run(rounds=1 if quick else 3, requests=6 if quick else 12))


async def _run(rounds: int, requests: int) -> list[dict[str, Any]]:
    none, one, two = (PoolConfig(replicas=n) for n in (0, 1, 2))
    router = Config().router.model_copy(update={"port": 0})
    split = Config(prefill=one, decode=one, aggregated=none, router=router)
    merged = Config(prefill=none, decode=none, aggregated=two, router=router)
    rng = random.Random(1)
    kinds = {"disaggregated": split, "aggregated": merged}
    measured: dict[str, list[list[Sample]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, config in kinds.items():
            async with Deployment(config) as deployment:
                await _load(deployment.address, rng, CLIENTS)
                measured[kind].append(await _load(deployment.address, rng, requests))
    return _rows(measured["disaggregated"], measured["aggregated"])


async def _load(address: str, rng: random.Random, requests: int) -> list[Sample]:
    """All requests, through so many clients at once."""
    todo = list(range(requests))
    samples: list[Sample] = []

    async def client() -> None:
        async with AsyncClient(address) as connection:
            while todo:
                todo.pop()
                prompt = [rng.randrange(1000, 40_000) for _ in range(PROMPT_TOKENS)]
                samples.append(await _one(connection, prompt))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return samples


async def _one(client: AsyncClient, prompt: Sequence[int]) -> Sample:
    began = last = time.perf_counter()
    first: float | None = None
    gaps: list[float] = []
    generation = client.generate(prompt, temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    async for chunk in generation:
        now = time.perf_counter()
        if first is None:
            first = now - began
        else:
            gaps += [(now - last) / len(chunk.token_ids)] * len(chunk.token_ids)
        last = now
    assert first is not None
    return Sample(first, tuple(gaps), last - began)


def _rows(
    split: Sequence[Sequence[Sample]], merged: Sequence[Sequence[Sample]]
) -> list[dict[str, Any]]:
    def median_of(rounds: Sequence[Sequence[Sample]], figure: str) -> float:
        return statistics.median(_figures(samples)[figure] for samples in rounds)

    units = {"ttft_p50": "ms", "tpot_p50": "ms", "itl_p99": "ms", "output_tokens_per_s": "1/s"}
    rows = []
    for figure, unit in units.items():
        value, other = median_of(split, figure), median_of(merged, figure)
        rows.append(
            {
                "metric": f"{figure} at {CLIENTS} clients, {PROMPT_TOKENS} in, "
                f"{OUTPUT_TOKENS} out, 1P1D",
                "value": value,
                "unit": unit,
                "against": "2 aggregated workers on the same cores",
                "against_value": other,
                "ratio": value / other,
                "goal": None,
                "met": None,
            }
        )
    return rows


def _figures(samples: Sequence[Sample]) -> dict[str, float]:
    gaps = sorted(g for s in samples for g in s.gaps_s)
    tokens = sum(1 + len(s.gaps_s) for s in samples)
    busy_s = sum(s.total_s for s in samples) / CLIENTS
    return {
        "ttft_p50": 1e3 * statistics.median(s.ttft_s for s in samples),
        "tpot_p50": 1e3 * statistics.median(statistics.fmean(s.gaps_s) for s in samples),
        "itl_p99": 1e3 * gaps[int(0.99 * (len(gaps) - 1))],
        "output_tokens_per_s": tokens / busy_s,
    }
