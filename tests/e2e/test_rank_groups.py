"""Replicas of several ranks under Ray: real model, real collectives, a rank that dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from deploy.launch import Deployment
from eastwest.client import AsyncClient
from eastwest.config import Config, KVConfig, ModelConfig, PoolConfig
from eastwest.errors import ConfigError, EastWestError
from eastwest.ports import SampleInput, StepRow
from eastwest.types import SamplingParams
from engine.torch_engine import load_engine
from runtime.cluster import Cluster
from runtime.supervisor import Supervisor, WorkerSpec
from tests.e2e.hosting import refuse
from tests.models import default_model_dir

pytestmark = pytest.mark.e2e

PROMPT = [(7 * i) % 900 + 50 for i in range(90)]
COUNT = 8
GREEDY = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)


def one_rank_alone() -> list[int]:
    """What the default model says, without any of what is tested here."""
    engine = load_engine(
        default_model_dir(), ModelConfig(dtype="float32"), PoolConfig(), KVConfig()
    )
    output: list[int] = []
    blocks = range(10)
    while len(output) < COUNT:
        tokens = output[-1:] or PROMPT
        start = len(PROMPT) + len(output) - 1 if output else 0
        [token] = engine.step(
            [StepRow(tokens, start, blocks, SampleInput(GREEDY, PROMPT, tuple(output)))]
        )
        assert token is not None
        output.append(token.token)
    engine.close()
    return output


async def answer(client: AsyncClient) -> list[int]:
    """As soon as there are workers that give it; errors meanwhile are retriable."""
    while True:
        try:
            completion = await client.generate(PROMPT, sampling=GREEDY)
        except EastWestError as error:
            if not error.status.retriable:
                raise
        else:
            return list(completion.token_ids)


@pytest.mark.timeout(600)
async def test_a_replica_with_one_dead_rank_is_replaced_as_a_whole() -> None:
    small = {"kv_tokens": 2048}
    config = Config.model_validate(
        {
            "model": {"dtype": "float32"},
            "router": {"port": 0, "conditional": False},
            "prefill": {"layout": {"tp": 3}, **small},
            "decode": {"layout": {"pp": 2}, "block_tokens": 32, **small},
            "store": {"enabled": False},
        }
    )
    expected = one_rank_alone()
    async with Deployment(config) as deployment, AsyncClient(deployment.address) as client:
        assert await answer(client) == expected
        status = {w.worker_id: w for w in (await client.loads()).workers}
        assert status["prefill-0"].layout == "tp=3"
        assert status["decode-0"].layout == "pp=2"

        before = deployment.supervisor.workers()["decode-0"]
        [other] = before.other_pids
        os.kill(other, signal.SIGKILL)
        async with asyncio.timeout(300):
            while deployment.supervisor.workers()["decode-0"].pid == before.pid:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        after = deployment.supervisor.workers()["decode-0"]
        assert {after.pid, *after.other_pids}.isdisjoint({before.pid, *before.other_pids})
        assert after.info.epoch > before.info.epoch
        assert await answer(client) == expected

        leaving = deployment.supervisor.workers()["prefill-0"]
        await deployment.drain_worker("prefill-0")
        assert set(deployment.supervisor.workers()) == {"decode-0"}
        pids = [p for p in (leaving.pid, *leaving.other_pids) if psutil.pid_exists(p)]
        left = [psutil.Process(pid) for pid in pids]
        _, alive = await asyncio.to_thread(psutil.wait_procs, left, timeout=60)
        assert not alive


async def test_more_ranks_than_the_cluster_has_room_for_are_refused_at_once() -> None:
    cluster = Cluster(None, cpus=2)
    try:
        supervisor = Supervisor(_Nobody())
        with pytest.raises(ConfigError, match="needs 4 ranks of 1 CPU; the cluster has 2 CPU"):
            await supervisor.start_worker(WorkerSpec("wide", refuse, cpus=1, ranks=4))
        await supervisor.close()
    finally:
        cluster.close()


class _Nobody:
    """Is a `Membership` that nobody asks."""

    def add_worker(self, worker_id: str, address: str) -> None:
        raise AssertionError(worker_id)

    async def remove_worker(self, worker_id: str) -> None:
        pass


def test_a_cluster_whose_first_start_fails_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, real = [], ray.init

    def init(**settings: Any) -> object:
        started.append(Path(settings["_temp_dir"]))
        if len(started) == 1:
            # As Ray does where one of its processes does not come up.
            raise Exception("The current node timed out during startup")
        return real(**settings)

    monkeypatch.setattr(ray, "init", init)
    cluster = Cluster(None, cpus=1)
    assert ray.cluster_resources()["CPU"] == 1  # type: ignore[no-untyped-call]
    cluster.close()
    assert len(started) == 2
    assert not any(directory.exists() for directory in started)


def test_a_cluster_that_never_starts_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: Any) -> object:
        raise Exception("no raylet")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConfigError, match=r"reach Ray \(a local cluster\): no raylet"):
        Cluster(None, cpus=1)
