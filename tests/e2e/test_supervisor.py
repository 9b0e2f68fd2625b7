"""Ray starts, restarts and ends workers; the router follows."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from eastwest.client import AsyncClient
from eastwest.clock import SystemClock
from eastwest.errors import EastWestError, ModelError
from eastwest.testing.engine import expected_output
from eastwest.types import Role
from router.server import Router
from runtime.cluster import Cluster
from runtime.supervisor import Supervisor, WorkerSpec
from tests.e2e.hosting import a_spec, build_defective, refuse
from tests.rig import WAIT_S, a_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(None, cpus=8)
    yield cluster
    cluster.close()


async def test_a_killed_worker_is_restarted_and_serves_again(
    cluster: Cluster, tiny_model_dir: Path
) -> None:
    config = a_config()
    router = Router(config, tiny_model_dir, None, SystemClock(), random.Random(1))
    address = await router.start()
    supervisor = Supervisor(router)
    try:
        async with AsyncClient(address, timeout_s=WAIT_S) as client, asyncio.timeout(240):
            placed = await asyncio.gather(
                supervisor.start_worker(a_spec("p", Role.PREFILL, config)),
                supervisor.start_worker(a_spec("d", Role.DECODE, config)),
            )
            await router.wait_ready()
            prompt = list(range(1, 40))
            first = await client.generate(prompt, temperature=0.0, max_tokens=5)
            assert list(first.token_ids) == expected_output(prompt, 5)

            os.kill(placed[1].pid, signal.SIGKILL)
            again = await _served(client, prompt)
            assert again == expected_output(prompt, 5)
            status = {w.worker_id: w for w in (await client.loads()).workers}
            assert status["d"].epoch > placed[1].info.epoch
    finally:
        await supervisor.close()
        await router.stop()


async def test_a_worker_with_a_defect_ends_itself_and_another_takes_its_place(
    cluster: Cluster, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config, trigger = a_config(), tmp_path / "defect"
    router = Router(config, tiny_model_dir, None, SystemClock(), random.Random(1))
    address = await router.start()
    supervisor = Supervisor(router)
    build = partial(build_defective, trigger, "d", Role.DECODE, config)
    try:
        async with AsyncClient(address, timeout_s=WAIT_S) as client, asyncio.timeout(240):
            _, placed = await asyncio.gather(
                supervisor.start_worker(a_spec("p", Role.PREFILL, config)),
                supervisor.start_worker(WorkerSpec("d", build, cpus=1)),
            )
            await router.wait_ready()
            prompt = list(range(1, 40))
            generation = client.generate(prompt, temperature=0.0, max_tokens=400)
            chunks = aiter(generation)
            tokens = [t for _ in range(3) for t in (await anext(chunks)).token_ids]
            trigger.touch()
            tokens += [t async for chunk in chunks for t in chunk.token_ids]
            assert tokens == expected_output(prompt, 400)
            assert (await generation).usage.migrations == 1
            status = {w.worker_id: w for w in (await client.loads()).workers}
            assert status["d"].epoch > placed.info.epoch
    finally:
        await supervisor.close()
        await router.stop()


async def _served(client: AsyncClient, prompt: list[int]) -> list[int]:
    """The answer as soon as there is a worker that gives it; errors meanwhile are retriable."""
    while True:
        try:
            completion = await client.generate(prompt, temperature=0.0, max_tokens=5)
        except EastWestError as error:
            if not error.status.retriable:
                raise
        else:
            return list(completion.token_ids)


async def test_a_worker_that_cannot_start_says_why(cluster: Cluster) -> None:
    router = Router.__new__(Router)
    supervisor = Supervisor(router)
    starting = supervisor.start_worker(WorkerSpec("bad", refuse, cpus=1))
    with pytest.raises(ModelError, match="this checkpoint is truncated"):
        await starting
