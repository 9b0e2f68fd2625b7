"""Resuming a stored session against recomputing it: time to first token, on fresh workers.

Sessions are spilled, both workers are replaced so that no device holds anything, and then each
session goes on with a short turn, alternating with the same tokens under another tenant, whose
cache is its own and empty.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from typing import Any

from deploy.launch import Deployment
from eastwest.client import AsyncClient
from eastwest.config import Config
from eastwest.types import Role

SESSION_TOKENS = 4000
TURN_TOKENS = 8
GOAL = 10.0


def rows(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    return asyncio.run(_run(sessions=1 if quick else 3))


async def _run(sessions: int) -> list[dict[str, Any]]:
    config = Config.model_validate(
        {
            "router": {"port": 0, "conditional": False},
            "store": {"idle_s": 0.1},
            "prefill": {"kv_tokens": 32768},
            "decode": {"kv_tokens": 32768},
        }
    )
    rng = random.Random(4000)
    prompts = [_tokens(rng, SESSION_TOKENS) for _ in range(sessions)]
    resumed: list[float] = []
    recomputed: list[float] = []
    async with Deployment(config) as deployment, AsyncClient(deployment.address) as client:
        for i, prompt in enumerate(prompts):
            await client.generate(prompt, session=f"s{i}", max_tokens=1)
        while await _spilled(client) < sessions:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)
        for worker_id in list(deployment.supervisor.workers()):
            await deployment.stop_worker(worker_id)
        await asyncio.gather(
            deployment.start_worker(Role.PREFILL), deployment.start_worker(Role.DECODE)
        )
        await deployment.wait_ready()
        await _warm_up(client, rng)
        for i, prompt in enumerate(prompts):
            turn = _tokens(rng, TURN_TOKENS)
            done = await client.generate(turn, session=f"s{i}", must_exist=True, max_tokens=1)
            resumed.append(done.timing.ttft.total_ns / 1e6)
            async with AsyncClient(deployment.address, tenant=f"cold-{i}") as other:
                done = await other.generate([*prompt, *turn], max_tokens=1)
            recomputed.append(done.timing.ttft.total_ns / 1e6)
    value, against = statistics.median(resumed), statistics.median(recomputed)
    return [
        {
            "metric": f"time to first token of a {SESSION_TOKENS}-token session from the store",
            "value": value,
            "unit": "ms",
            "against": "recomputing it",
            "against_value": against,
            "ratio": against / value,
            "goal": f"at least {GOAL:g} times faster",
            "met": against / value >= GOAL,
        }
    ]


async def _spilled(client: AsyncClient) -> int:
    return sum(w.sessions_spilled for w in (await client.loads()).workers)


async def _warm_up(client: AsyncClient, rng: random.Random) -> None:
    """The first steps of a process are slow."""
    await client.generate(_tokens(rng, 600), max_tokens=4, ignore_eos=True)


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1000, 40_000) for _ in range(count)]
