"""One tenant floods the deployment; another asks now and then, and is served about as before."""

from __future__ import annotations

import asyncio
import random

from eastwest.clock import ns
from eastwest.config import Config, PoolConfig, RouterConfig
from eastwest.layout import KVSpec
from eastwest.types import Role, SamplingParams
from router.requests import Request
from sim.cluster import Cluster, Shape
from sim.engine import StepTime
from sim.virtual_loop import VirtualClock, VirtualLoop

SPEC = KVSpec(num_layers=2, num_kv_heads=2, key_dim=8, value_dim=8, dtype="bfloat16")
SHAPE = Shape(
    ((Role.PREFILL, 1), (Role.DECODE, 1)),
    num_blocks=2000,
    pool=PoolConfig(step_tokens=512, running_max=16),
    kv=SPEC,
    config=Config(router=RouterConfig(queue_max=200, active_max=16)),
)
# A prompt of 200 tokens is computed in a tenth of a second: ten a second is all there is.
PROMPT_TOKENS, SECONDS_A_TOKEN = 200, 5e-4
MODEST_RATE, FLOOD_RATE, SPAN_S = 0.5, 40.0, 120.0


def step_time(role: Role) -> StepTime:
    return lambda rows: 1e-3 + SECONDS_A_TOKEN * sum(len(row.tokens) for row in rows)


def run(flood: float) -> tuple[list[float], int]:
    """TTFTs of the modest tenant, and how many of the flood were served."""
    loop = VirtualLoop()

    async def work() -> tuple[list[float], int]:
        cluster = Cluster(SHAPE, step_time, VirtualClock(loop), random.Random(1))
        cluster.start()
        streams = [tenant(cluster, "modest", MODEST_RATE, 2)]
        if flood:
            streams.append(tenant(cluster, "flood", flood, 3))
        await asyncio.gather(*streams)
        await cluster.quiet()
        await asyncio.sleep(5)
        cluster.check_quiet()
        await cluster.close()
        done = list(cluster.finished())
        modest = [s.ttft_s for s in done if s.request.salt == "modest"]
        asked = sum(1 for s in cluster.seen.values() if s.request.salt == "modest")
        assert len(modest) == asked, "a modest request was refused or lost"
        return sorted(modest), sum(1 for s in done if s.request.salt == "flood")

    return loop.run(work())


async def tenant(cluster: Cluster, salt: str, rate: float, seed: int) -> None:
    rng, number = random.Random(seed), 0
    loop = asyncio.get_running_loop()
    while loop.time() < SPAN_S:
        await asyncio.sleep(rng.expovariate(rate))
        number += 1
        now = cluster.clock.now_ns()
        prompt = (seed * 100_000 + number, *range(1, PROMPT_TOKENS))
        sampling = SamplingParams(temperature=0.0, seed=0, ignore_eos=True)
        cluster.submit(
            Request(f"{salt}{number}", salt, "", prompt, sampling, 10, now, now + ns(60))
        )


def test_a_flood_moves_the_ttft_of_others_by_what_is_being_served_and_no_more() -> None:
    calm, _ = run(0.0)
    crowded, served = run(FLOOD_RATE)
    assert served > 600, "the flood itself is served with what is left"
    p99_calm, p99_crowded = (ttfts[int(0.99 * len(ttfts))] for ttfts in (calm, crowded))
    # Prompts that the router lets ahead of a worker's step (two steps of 512 tokens), the one
    # that is being computed, and one turn of the other tenant.
    bound_s = (3 * 512 + PROMPT_TOKENS) * SECONDS_A_TOKEN + 16 * 2e-3
    assert p99_crowded - p99_calm <= bound_s
