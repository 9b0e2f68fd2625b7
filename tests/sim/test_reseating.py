"""Two routers fill the same decode workers, so that each is wrong about the room there is."""

from __future__ import annotations

import asyncio
import random

import pytest

from eastwest.clock import ns
from eastwest.config import Config, PoolConfig, RouterConfig
from eastwest.layout import KVSpec
from eastwest.types import Role, SamplingParams
from router import reseating
from router.requests import Request
from sim.cluster import Cluster, Shape
from sim.engine import StepTime
from sim.virtual_loop import VirtualClock, VirtualLoop

SPEC = KVSpec(num_layers=2, num_kv_heads=2, key_dim=8, value_dim=8, dtype="bfloat16")
SHAPE = Shape(
    ((Role.PREFILL, 1), (Role.DECODE, 2)),
    num_blocks=48,
    pool=PoolConfig(step_tokens=512, running_max=16),
    kv=SPEC,
    config=Config(router=RouterConfig(conditional=False)),
    routers=2,
)
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 600
PULSE_S = SHAPE.config.router.heartbeat_s


def step_time(role: Role) -> StepTime:
    return lambda rows: 2e-2


def a_request(name: str, number: int, now_ns: int) -> Request:
    sampling = SamplingParams(temperature=0.0, seed=0, ignore_eos=True)
    prompt = (number, *range(1, PROMPT_TOKENS))
    return Request(name, "", "", prompt, sampling, OUTPUT_TOKENS, now_ns, now_ns + ns(60))


def ttfts() -> tuple[float, float, str]:
    """Of a request whose place another router has just taken: its time to the first token, that of
    the other's to its last one, and where it went."""
    loop = VirtualLoop()

    async def work() -> tuple[float, float, str]:
        cluster = Cluster(SHAPE, step_time, VirtualClock(loop), random.Random(1))
        cluster.start()
        await asyncio.sleep(1)
        # A worker has room for one; the second router does not know of the first one's yet.
        for index, name in enumerate(("long", "other")):
            request = a_request(name, index + 1, cluster.clock.now_ns())
            assert cluster.submit(request, index) is None
            await asyncio.sleep(0.01)
        await cluster.quiet()
        await asyncio.sleep(5)
        cluster.check_quiet()
        await cluster.close()
        seen = cluster.seen["other"]
        record = cluster.routers[1].scheduler.decisions.find("", "other")
        assert record is not None
        told = "; ".join(f"{p.placement.decode.worker_id}: {p.loss}" for p in record.placed)
        long = cluster.seen["long"]
        assert len(list(cluster.finished())) == 2
        return seen.ttft_s, (long.last_ns - long.request.accepted_ns) / 1e9, told

    return loop.run(work())


def test_a_request_does_not_wait_behind_the_long_answer_of_another_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ttft_s, long_s, told = ttfts()
    assert told == (
        "decode-0: decode worker decode-0 has kept it waiting while others have room; decode-1: "
    )
    # Until a pulse finds that it has waited for long enough, and a prompt.
    assert ttft_s < 2 * PULSE_S + 0.5
    monkeypatch.setattr(reseating, "MOVES_MAX", 0)
    ttft_s, _, told = ttfts()
    assert told == "decode-0: "
    assert ttft_s > long_s
