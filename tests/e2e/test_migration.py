"""Decode workers that are killed or frozen under Ray in mid-stream: their streams go on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from eastwest.client import AsyncClient, AsyncGeneration
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.testing.audits import assert_clean
from eastwest.testing.engine import expected_output
from eastwest.types import Role, SamplingParams
from router.server import Router
from runtime.cluster import Cluster
from runtime.supervisor import Supervisor
from tests.e2e.hosting import a_spec
from tests.rig import a_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WAIT_S = 240.0
PROMPT = list(range(1, 40))
COUNT = 400
GREEDY = SamplingParams(temperature=0.0, max_tokens=COUNT)
SAMPLED = SamplingParams(temperature=0.8, seed=11, max_tokens=COUNT)


@dataclass
class Served:
    """A router, its workers (`pids` by name) and a client."""

    client: AsyncClient
    pids: dict[str, int]


@asynccontextmanager
async def served(model_dir: Path, config: Config) -> AsyncIterator[Served]:
    """One prefill and two decode workers, simulated engines in processes of their own. In the end
    no worker may hold anything."""
    cluster = Cluster(None, cpus=8)
    router = Router(config, model_dir, None, SystemClock(), random.Random(1))
    address = await router.start()
    supervisor = Supervisor(router)
    roles = {"p0": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE}
    try:
        async with AsyncClient(address, timeout_s=WAIT_S) as client:
            placed = await asyncio.gather(
                *(
                    supervisor.start_worker(a_spec(name, role, config))
                    for name, role in roles.items()
                )
            )
            await until_up(client)
            yield Served(client, {p.info.worker_id: p.pid for p in placed})
            await until_up(client)
            there = [w.address for w in (await client.server_info()).workers]
            await assert_clean(there, WAIT_S)
    finally:
        await supervisor.close()
        await router.stop()
        cluster.close()


async def until_up(client: AsyncClient) -> None:
    async with asyncio.timeout(WAIT_S):
        while {w.liveness for w in (await client.server_info()).workers} != {"up"}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def first_of(generation: AsyncGeneration) -> list[int]:
    """The tokens of the first chunks, the decode worker's among them."""
    tokens: list[int] = []
    async for chunk in generation:
        tokens += chunk.token_ids
        if len(tokens) > 2:
            break
    return tokens


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_a_stream_outlives_a_decode_worker_that_is_killed(
    tiny_model_dir: Path, sampling: SamplingParams
) -> None:
    async with served(tiny_model_dir, a_config()) as s:
        generation = s.client.generate(PROMPT, sampling=sampling)
        tokens = await first_of(generation)
        os.kill(s.pids["d0"], signal.SIGKILL)
        tokens += [token async for chunk in generation for token in chunk.token_ids]
        assert tokens == expected_output(PROMPT, COUNT, sampling)
        completion = await generation
        assert completion.usage.migrations == 1


async def test_a_stream_outlives_a_decode_worker_that_freezes_and_wakes(
    tiny_model_dir: Path,
) -> None:
    config = a_config(router={"heartbeat_s": 0.2, "worker_timeout_s": 3.0})
    async with served(tiny_model_dir, config) as s:
        generation = s.client.generate(PROMPT, sampling=GREEDY)
        tokens = await first_of(generation)
        os.kill(s.pids["d0"], signal.SIGSTOP)
        tokens += [token async for chunk in generation for token in chunk.token_ids]
        os.kill(s.pids["d0"], signal.SIGCONT)
        assert tokens == expected_output(PROMPT, COUNT)
        completion = await generation
        assert completion.usage.migrations == 1
        assert completion.decode_worker == "d1"
