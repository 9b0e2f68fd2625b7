"""Two routers over the same SIMULATED workers: each is harmed by its own end only."""

from __future__ import annotations

import asyncio
import random

from eastwest.clock import ns
from eastwest.config import Config, KVConfig, PoolConfig, RouterConfig
from eastwest.errors import Unavailable
from eastwest.layout import KVSpec
from eastwest.types import Role, SamplingParams
from router.requests import Outcome, Request
from sim.cluster import Cluster, Shape
from sim.virtual_loop import VirtualClock, VirtualLoop

LEASE_S = 5.0
SHAPE = Shape(
    ((Role.PREFILL, 1), (Role.DECODE, 2)),
    num_blocks=800,
    pool=PoolConfig(step_tokens=64, running_max=32),
    kv=KVSpec(num_layers=2, num_kv_heads=2, key_dim=8, value_dim=8, dtype="bfloat16"),
    config=Config(
        router=RouterConfig(heartbeat_s=1.0, worker_timeout_s=3.0), kv=KVConfig(lease_s=LEASE_S)
    ),
    routers=2,
)
EACH = 6
STEP_S, TOKENS = 0.01, 800  # longer than a lease


def served_by(cluster: Cluster, index: int) -> list[Request]:
    """Requests at one router, all submitted at once."""
    now = cluster.clock.now_ns()
    requests = [
        Request(
            request_id=f"{index}.{i}", salt="", session_id="",
            prompt=(100 * index + i + 1, *range(40)),
            sampling=SamplingParams(temperature=0.0, ignore_eos=True), max_tokens=TOKENS,
            accepted_ns=now, deadline_ns=now + ns(300.0),
        )
        for i in range(EACH)
    ]  # fmt: skip
    for request in requests:
        assert cluster.submit(request, index) is None
    return requests


async def a_cluster(loop: VirtualLoop) -> Cluster:
    cluster = Cluster(SHAPE, lambda _: lambda _: STEP_S, VirtualClock(loop), random.Random(1))
    cluster.start()
    return cluster


def test_a_killed_router_ends_its_own_requests_and_nobody_elses() -> None:
    loop = VirtualLoop()

    async def story() -> None:
        cluster = await a_cluster(loop)
        lost, kept = served_by(cluster, 0), served_by(cluster, 1)
        await asyncio.sleep(1.0)
        assert all(cluster.seen[r.request_id].tokens for r in (*lost, *kept))
        cluster.kill_router(0)
        await cluster.quiet()
        for request in lost:
            assert isinstance(cluster.seen[request.request_id].outcome, Unavailable)
        for request in kept:
            outcome = cluster.seen[request.request_id].outcome
            assert isinstance(outcome, Outcome)
            assert outcome.usage.migrations == 0
        cluster.check_quiet()
        await cluster.close()

    loop.run(story())


def test_what_a_frozen_router_holds_is_freed_by_lease_and_goes_on_when_it_wakes() -> None:
    loop = VirtualLoop()

    async def story() -> None:
        cluster = await a_cluster(loop)
        frozen = served_by(cluster, 0)
        await asyncio.sleep(0.5)
        assert any(replica.audit().held_blocks for replica in cluster.replicas.values())
        cluster.routers[0].freeze(20.0)
        await asyncio.sleep(LEASE_S + 1.0)
        assert not any(replica.audit().held_blocks for replica in cluster.replicas.values())
        served_by(cluster, 1)
        await cluster.quiet()
        for request in frozen:
            outcome = cluster.seen[request.request_id].outcome
            assert isinstance(outcome, Outcome)
            assert outcome.usage.migrations == 1
        cluster.check_quiet()
        await cluster.close()

    loop.run(story())
