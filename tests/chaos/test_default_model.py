"""The default model on Ray, behind the deployment's own router and one more that follows it, while
workers are killed and frozen: every stream says what it says in quiet times, or ends typed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
import yaml

from deploy.launch import Deployment
from eastwest.client import AsyncClient
from eastwest.config import Config
from eastwest.errors import EastWestError
from eastwest.testing.audits import assert_clean
from tests.chaos.load import ALLOWED
from tests.chaos.processes import router_process
from tests.chaos.test_storms import FIRST

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.timeout(1200)]

WAIT_S = 300.0
STRIKES = 4
CLIENTS = 3
OUTPUT_TOKENS = 40
CONFIG = {
    "model": {"dtype": "float32"},
    "router": {"port": 0, "heartbeat_s": 0.5, "worker_timeout_s": 4.0, "attempts_max": 6},
    "prefill": {"kv_tokens": 2048, "step_tokens": 64},
    "decode": {"kv_tokens": 2048, "replicas": 2},
    "kv": {"lease_s": 8.0},
    "store": {"idle_s": 0.5},
}


async def strike(deployment: Deployment, rng: random.Random) -> Counter[str]:
    """Kill or freeze a worker now and then. What was done, how often."""
    done: Counter[str] = Counter()
    for _ in range(STRIKES):
        await asyncio.sleep(rng.uniform(2.0, 6.0))
        workers = deployment.supervisor.workers()
        pid = workers[rng.choice(sorted(workers))].pid
        kind = rng.choice((signal.SIGKILL, signal.SIGSTOP))
        done[kind.name] += 1
        try:
            os.kill(pid, kind)
            if kind is signal.SIGSTOP:
                await asyncio.sleep(rng.uniform(1.0, 8.0))
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue  # it was killed before, and is not up again
    return done


async def test_streams_of_the_default_model_end_rightly(tmp_path: Path) -> None:
    rng, prompts = random.Random(FIRST), random.Random(1)
    given = [[prompts.randrange(1000, 40_000) for _ in range(n)] for n in (5, 40, 90, 150)]
    ended: Counter[str] = Counter()

    async def one(address: str, tenant: str) -> list[int]:
        choice = rng.randrange(len(given))
        async with AsyncClient(address, tenant=tenant, timeout_s=WAIT_S) as client:
            generation = client.generate(
                given[choice], temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True
            )
            tokens: list[int] = []
            try:
                async for chunk in generation:
                    tokens += chunk.token_ids
                    assert tokens == quiet[choice][: len(tokens)]
                assert list((await generation).token_ids) == tokens == quiet[choice]
            except EastWestError as error:
                if error.code not in ALLOWED:
                    raise
                ended[error.code.value] += 1
            else:
                ended["completed"] += 1
            return tokens

    async def client(addresses: list[str], name: str, over: asyncio.Event) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            await one(rng.choice(addresses), f"{name}.{turn}")

    async with Deployment(Config.model_validate(CONFIG)) as deployment:
        config = tmp_path / "config.yaml"
        tree = {**CONFIG, "store": {"url": deployment.config.store.url}}
        config.write_text(yaml.safe_dump(tree), encoding="utf-8")
        other = router_process(
            "other", ["--config", str(config), "--join", deployment.address], tmp_path
        )
        await other.start()
        try:
            line = await other.line()
            addresses = [deployment.address, line.split()[-1]]
            async with AsyncClient(deployment.address, timeout_s=WAIT_S) as alone:
                quiet = [
                    list((await alone.generate(p, temperature=0.0, max_tokens=OUTPUT_TOKENS,
                                               ignore_eos=True)).token_ids)
                    for p in given
                ]  # fmt: skip
            over = asyncio.Event()
            load = [asyncio.create_task(client(addresses, f"c{i}", over)) for i in range(CLIENTS)]
            struck = await strike(deployment, rng)
            over.set()
            await asyncio.gather(*load)
            print(f"seed {FIRST}: {dict(struck)}, {dict(ended)}")  # noqa: T201
            for address in addresses:
                async with AsyncClient(address, timeout_s=WAIT_S) as after:
                    await after.wait_ready(WAIT_S)
                    done = await after.generate(given[1], temperature=0.0, max_tokens=5)
                    assert list(done.token_ids) == quiet[1][:5]
                    there = [w.address for w in (await after.server_info()).workers]
                    await assert_clean(there, WAIT_S)
            assert ended["completed"]
        finally:
            await other.kill()
