"""Resuming a stored session against recomputing it: time to first token, on fresh workers.

Sessions are spilled, both workers are replaced so that no device holds anything, and then each
session goes on with a short turn. Recomputed are the same tokens under another tenant, whose cache
is its own and empty. The store is read at its full speed first; then over a link where loading
takes as long as computing: in turn, all is loaded, all is computed, or both go on from the two
ends. Last, sessions rest on the decode worker, and a new prefill worker reads them there. Figures
are medians of the rounds; each round takes sessions of its own.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import defaultdict
from typing import Any

from bench.slow_link import SlowLink
from deploy.launch import Deployment
from eastwest.client import AsyncClient
from eastwest.config import Config
from eastwest.messages import WorkerInfo
from eastwest.types import Role
from kv_store.embedded import EmbeddedValkey
from router.pace import NominalCosts

TURN_TOKENS = 8
GOAL, GOAL_BOTH = 10.0, 1.5


class Steered(NominalCosts):
    """What loading takes counts `factor` times in the next placement, and as it is after that."""

    factor = 1.0

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        """See the protocol."""
        asyncio.get_running_loop().call_soon(self.steer, 1.0)
        return super().load_s(worker, tokens) * self.factor

    def steer(self, factor: float) -> None:
        """See the class."""
        self.factor = factor


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    with EmbeddedValkey(4 << 30) as server:
        return asyncio.run(_run(server, 1200 if quick else 4000, rounds=1 if quick else 3))


async def _run(server: EmbeddedValkey, tokens: int, rounds: int) -> list[dict[str, Any]]:
    rng = random.Random(4000)
    prompts = [_tokens(rng, tokens) for _ in range(3 * rounds)]
    taken: defaultdict[str, list[float]] = defaultdict(list)
    costs = Steered()
    async with SlowLink(server.url.removeprefix("unix://")) as link:
        config = _config(link.url, tokens * (3 * rounds + 3))
        deployment = Deployment(config, costs=costs)
        async with deployment, AsyncClient(deployment.address) as client:
            for i, prompt in enumerate(prompts):
                await client.generate(prompt, session=f"s{i}", max_tokens=1)
            await _stored(client, len(prompts))
            await _replace(deployment)
            await client.generate(_tokens(rng, 600), max_tokens=4, ignore_eos=True)
            info = await client.model_info()

            async def resume(number: int, factor: float) -> float:
                turn = _tokens(rng, TURN_TOKENS)
                costs.steer(factor)
                done = await client.generate(
                    turn, session=f"s{number}", must_exist=True, max_tokens=1
                )
                return done.timing.ttft.total_ns / 1e6

            for i in range(rounds):
                taken["stored"].append(await resume(3 * i, 1e-9))
                taken["computed"].append(await _recompute(deployment, prompts[3 * i], rng))
            link.bytes_per_s = tokens * info.kv_bytes_per_token / taken["computed"][-1] * 1e3
            for i in range(rounds):
                taken["loaded"].append(await resume(3 * i + 1, 1e-9))
                taken["both"].append(await resume(3 * i + 2, 1.0))
                taken["computed"].append(await _recompute(deployment, prompts[3 * i], rng))
    lent, recomputed = await _lent(tokens, rounds)
    ms = {name: statistics.median(values) for name, values in taken.items()}
    what = f"time to first token of a {tokens}-token session"
    slow = f"{what}, the store at {link.bytes_per_s / 1e6:.1f} MB/s, from both ends"
    return [
        _row(f"{what} from the store", ms["stored"], "recomputing it", ms["computed"], GOAL),
        _row(slow, ms["both"], "loading all of it", ms["loaded"], GOAL_BOTH),
        _row(slow, ms["both"], "recomputing it", ms["computed"], GOAL_BOTH),
        _row(f"{what} from the decode worker", lent, "recomputing it", recomputed, GOAL),
    ]


async def _lent(tokens: int, rounds: int) -> tuple[float, float]:
    """Of sessions that only the decode worker has: time to first token where the prefill worker
    reads them there, and where it computes them."""
    rng = random.Random(4001)
    prompts = [_tokens(rng, tokens) for _ in range(rounds)]
    config = _config(None, tokens * (rounds + 3))
    lent, computed = [], []
    deployment = Deployment(config)
    async with deployment, AsyncClient(deployment.address) as client:
        for i, prompt in enumerate(prompts):
            await client.generate(prompt, session=f"s{i}", max_tokens=1)
        (former,) = [w for w in deployment.supervisor.workers() if w.startswith("prefill")]
        await deployment.stop_worker(former)
        await deployment.start_worker(Role.PREFILL)
        await deployment.wait_ready()
        await client.generate(_tokens(rng, 600), max_tokens=4, ignore_eos=True)
        for i, prompt in enumerate(prompts):
            turn = _tokens(rng, TURN_TOKENS)
            done = await client.generate(turn, session=f"s{i}", must_exist=True, max_tokens=1)
            assert done.usage.loaded_tokens > 0.9 * tokens, done.usage
            lent.append(done.timing.ttft.total_ns / 1e6)
            computed.append(await _recompute(deployment, prompt, rng))
    return statistics.median(lent), statistics.median(computed)


def _config(url: str | None, kv_tokens: int) -> Config:
    return Config.model_validate(
        {
            "router": {"port": 0, "conditional": False},
            "store": {"enabled": url is not None, "idle_s": 0.1, "url": url, "timeout_s": 60.0},
            "prefill": {"kv_tokens": kv_tokens},
            "decode": {"kv_tokens": kv_tokens},
        }
    )


def _row(what: str, value: float, against: str, other: float, goal: float) -> dict[str, Any]:
    return {
        "metric": what,
        "value": value,
        "unit": "ms",
        "against": against,
        "against_value": other,
        "ratio": other / value,
        "goal": f"at least {goal:g} times faster",
        "met": other / value >= goal,
    }


async def _recompute(deployment: Deployment, prompt: list[int], rng: random.Random) -> float:
    tenant = f"cold-{rng.getrandbits(32)}"
    async with AsyncClient(deployment.address, tenant=tenant) as other:
        done = await other.generate([*prompt, *_tokens(rng, TURN_TOKENS)], max_tokens=1)
    return done.timing.ttft.total_ns / 1e6


async def _replace(deployment: Deployment) -> None:
    for worker_id in list(deployment.supervisor.workers()):
        await deployment.stop_worker(worker_id)
    await asyncio.gather(*(deployment.start_worker(r) for r in (Role.PREFILL, Role.DECODE)))
    await deployment.wait_ready()


async def _stored(client: AsyncClient, sessions: int) -> None:
    while sum(w.sessions_spilled for w in (await client.loads()).workers) < sessions:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.05)


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1000, 40_000) for _ in range(count)]
