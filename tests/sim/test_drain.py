"""A worker that leaves while its router hears nothing of it, in virtual time."""

from __future__ import annotations

import asyncio
import random

from eastwest.clock import ns
from eastwest.config import Config, PoolConfig, RouterConfig
from eastwest.layout import KVSpec
from eastwest.types import Role, SamplingParams
from router.requests import Outcome, Request
from sim.cluster import Cluster, Shape
from sim.engine import StepTime
from sim.virtual_loop import VirtualClock, VirtualLoop

SHAPE = Shape(
    ((Role.PREFILL, 1), (Role.DECODE, 2)),
    num_blocks=200,
    pool=PoolConfig(step_tokens=512, running_max=16),
    kv=KVSpec(num_layers=2, num_kv_heads=2, key_dim=8, value_dim=8, dtype="bfloat16"),
    config=Config(router=RouterConfig(attempts_max=1, worker_timeout_s=60.0)),
)
TOKENS = 150


def step_time(role: Role) -> StepTime:
    return lambda rows: 0.1 if role is Role.DECODE else 1e-3


def test_a_worker_gives_back_what_its_router_leaves_there_and_nothing_is_lost() -> None:
    loop = VirtualLoop()

    async def work() -> None:
        cluster = Cluster(SHAPE, step_time, VirtualClock(loop), random.Random(1))
        cluster.start()
        for number in range(6):
            now = cluster.clock.now_ns()
            request = Request(
                request_id=f"r{number}", salt="", session_id="", prompt=(number + 1, 2, 3),
                sampling=SamplingParams(temperature=0.0, seed=0, ignore_eos=True),
                max_tokens=TOKENS, accepted_ns=now, deadline_ns=now + ns(600),
            )  # fmt: skip
            assert cluster.submit(request) is None
        await asyncio.sleep(5.0)
        leaver = cluster.replicas["decode-0"]
        assert leaver.decode.running == 3
        # Its stream stands still over the deadline and the grace behind it.
        cluster.router.stall("decode-0", 8.0)
        leaver.leaving.begin(1.0)
        await leaver.leaving.left.wait()
        await cluster.quiet()
        outcomes = [seen.outcome for seen in cluster.seen.values()]
        assert all(isinstance(outcome, Outcome) for outcome in outcomes)
        moved = [o for o in outcomes if isinstance(o, Outcome) and o.usage.migrations]
        assert len(moved) == 3
        assert {o.decode_worker for o in moved} == {"decode-1"}
        await asyncio.sleep(5.0)
        assert cluster.leaves == 1
        cluster.check_quiet()
        await cluster.close()

    loop.run(work())
