"""How much of a transfer hides behind the prefill that makes its KV.

A prompt of 2,000 tokens of the default model goes through one prefill and one decode worker, as
separate processes; its KV leaves layer by layer while it is computed. Then the decode worker is
replaced by an empty one and the same prompt comes again: the prefill worker has its KV already, so
that all of it moves at once, with nothing to hide behind. What the client paid for the transfer in
the first run (exposed: the gap from first to second token but for waiting for a decode step and the
step itself) is set against that time. Medians of the rounds.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import dataclass
from typing import Any

from deploy.launch import Deployment
from eastwest.answers import Completion
from eastwest.client import AsyncClient
from eastwest.config import Config, PoolConfig
from eastwest.types import Role

PROMPT_TOKENS = 2000
GOAL = 0.9


@dataclass(frozen=True, slots=True)
class Round:
    """exposed, alone: milliseconds that were paid, and that moving the same KV takes by itself."""

    bytes: int
    exposed_ms: float
    alone_ms: float


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    rows = []
    for transports in (("shared_memory", "grpc"), ("grpc",)):
        rounds = asyncio.run(_measure(1 if quick else 5, transports))
        rows.append(_row(transports[0], rounds))
    return rows


async def _measure(rounds: int, transports: tuple[str, ...]) -> list[Round]:
    base = Config()
    config = Config(
        prefill=PoolConfig(replicas=1),
        decode=PoolConfig(replicas=1),
        router=base.router.model_copy(update={"port": 0}),
        kv=base.kv.model_copy(update={"transports": transports}),
        store=base.store.model_copy(update={"enabled": False}),
    )
    rng = random.Random(2)
    async with Deployment(config) as deployment, AsyncClient(deployment.address) as client:
        await _ask(client, rng)
        worker = "decode-0"
        done = []
        for _ in range(rounds):
            prompt = [rng.randrange(1000, 40_000) for _ in range(PROMPT_TOKENS)]
            overlapped = await _one(client, prompt)
            placed = await deployment.start_worker(Role.DECODE)
            await deployment.stop_worker(worker)
            worker = placed.info.worker_id
            await _ask(client, rng)
            alone = await _one(client, prompt)
            assert alone.usage.computed_tokens < PROMPT_TOKENS // 10, "the KV was there already"
            assert overlapped.timing.second is not None
            second = overlapped.timing.second
            exposed_ms = (second.exposed_transfer_ns + second.import_ns) / 1e6
            done.append(Round(overlapped.transfer_bytes, exposed_ms, alone.transfer_ns / 1e6))
        return done


async def _ask(client: AsyncClient, rng: random.Random) -> None:
    """A short request, so that connections are open and the processes are warm."""
    await _one(client, [rng.randrange(1000, 40_000) for _ in range(100)])


async def _one(client: AsyncClient, prompt: list[int]) -> Completion:
    generation = client.generate(prompt, temperature=0.0, max_tokens=4, ignore_eos=True)
    return await generation.result()


def _row(transport: str, rounds: list[Round]) -> dict[str, Any]:
    exposed = statistics.median(r.exposed_ms for r in rounds)
    alone = statistics.median(r.alone_ms for r in rounds)
    hidden = 1 - exposed / alone
    size = rounds[0].bytes / 2**20
    return {
        "metric": f"exposed transfer of {PROMPT_TOKENS} tokens ({size:.0f} MiB), {transport}",
        "value": exposed,
        "unit": "ms",
        "against": "the same KV moved by itself (goal: share that is hidden)",
        "against_value": alone,
        "ratio": hidden,
        "goal": GOAL,
        "met": hidden >= GOAL,
    }
