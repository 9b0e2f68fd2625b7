"""Workers under Ray that are drained under load: no request fails, and they are gone for good."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import psutil
import pytest

from eastwest.client import AsyncClient
from eastwest.clock import SystemClock
from eastwest.testing.audits import assert_clean
from eastwest.testing.engine import expected_output
from eastwest.types import Role, SamplingParams
from router.server import Router
from runtime.cluster import Cluster
from runtime.supervisor import Supervisor
from tests.e2e.hosting import a_spec
from tests.e2e.test_migration import WAIT_S, until_up
from tests.rig import a_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROLES = {"p0": Role.PREFILL, "p1": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE}
COUNT = 60


async def eastwest(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.cli", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, " ".join(out.decode().split()), errors.decode()


async def ask(client: AsyncClient, number: int, over: asyncio.Event) -> int:
    """One request after the other until it is over; how many. Every one must end well."""
    rng, served = random.Random(number), 0
    while not over.is_set():
        prompt = [rng.randrange(1, 500) for _ in range(rng.randrange(1, 90))]
        sampling = SamplingParams(
            temperature=rng.choice((0.0, 0.8)), seed=rng.getrandbits(32), max_tokens=COUNT
        )
        completion = await client.generate(prompt, sampling=sampling)
        assert list(completion.token_ids) == expected_output(prompt, COUNT, sampling)
        served += 1
    return served


async def test_two_of_two_pairs_leave_under_load(tiny_model_dir: Path) -> None:
    config = a_config(router={"attempts_max": 1})
    cluster = Cluster(None, cpus=8)
    router = Router(config, tiny_model_dir, None, SystemClock(), random.Random(1))
    address = await router.start()
    supervisor = Supervisor(router)
    try:
        async with AsyncClient(address, timeout_s=WAIT_S) as client:
            starting = [supervisor.start_worker(a_spec(w, r, config)) for w, r in ROLES.items()]
            pids = {p.info.worker_id: p.pid for p in await asyncio.gather(*starting)}
            await until_up(client)
            over = asyncio.Event()
            asking = [asyncio.ensure_future(ask(client, i, over)) for i in range(5)]
            # By the command, and by its supervisor.
            code, said, errors = await eastwest(
                "drain", "d0", "--timeout", "0.2", "--address", address
            )
            assert code == 0, errors
            assert "d0 is draining: " in said
            assert "d0 is drained: " in said
            assert "warning" not in said
            await supervisor.drain_worker("p1", 0.0)
            async with asyncio.timeout(WAIT_S):
                while set(supervisor.workers()) != {"p0", "d1"}:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.02)
            left = [psutil.Process(pids[w]) for w in ("d0", "p1") if psutil.pid_exists(pids[w])]
            _, alive = await asyncio.to_thread(psutil.wait_procs, left, timeout=WAIT_S)
            assert not alive
            over.set()
            assert sum(await asyncio.gather(*asking)) > 0
            assert {w.worker_id for w in (await client.loads()).workers} == {"p0", "d1"}
            assert (await client.loads()).failed == 0
            there = {w.worker_id: w.address for w in (await client.server_info()).workers}
            await assert_clean([there["p0"], there["d1"]], WAIT_S)
            code, _, errors = await eastwest("drain", "d0", "--address", address)
            assert (code, errors.count("\n")) == (1, 1)
            assert "decode worker d0 is down; allowed: workers that are up" in errors
            code, said, _ = await eastwest("drain", "d1", "--cancel", "--address", address)
            assert (code, said) == (0, "d1 does not drain")
            code, said, errors = await eastwest("drain", "d1", "--address", address)
            assert code == 0, errors
            assert "warning: without d1 no request can be served" in said
    finally:
        await supervisor.close()
        await router.stop()
        cluster.close()
