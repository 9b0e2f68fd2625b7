"""Loading against recomputing in virtual time: real router and workers, a SIMULATED store."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest

from eastwest.clock import ns
from eastwest.config import Config, KVConfig, PoolConfig, RouterConfig, StoreConfig
from eastwest.layout import KVSpec
from eastwest.messages import WorkerInfo
from eastwest.ports import StepRow
from eastwest.types import Role, SamplingParams
from router.requests import Outcome, Request
from sim.cluster import Cluster, Shape
from sim.virtual_loop import VirtualClock, VirtualLoop

KV = KVSpec(num_layers=32, num_kv_heads=8, key_dim=128, value_dim=128, dtype="bfloat16")
TOKENS, TURN = 16_000, 100
TOKEN_S, LATENCY_S = 1e-4, 1e-5
# The whole prompt takes as long to load as to compute.
EVEN = KV.bytes_per_token / TOKEN_S
PAIR = ((Role.PREFILL, 1), (Role.DECODE, 1))
ONE = ((Role.AGGREGATED, 1),)


@dataclass(frozen=True)
class Costs:
    """What a step, the store and a link take; `load` is what loading is thought to take, times
    that."""

    bytes_per_s: float
    load: float
    link_bytes_per_s: float = math.inf

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        return new_tokens * TOKEN_S

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        return self.load * (LATENCY_S + tokens * KV.bytes_per_token / self.bytes_per_s)

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        return 1e-2

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        return self.load * tokens * KV.bytes_per_token / self.link_bytes_per_s


def step_s(rows: Sequence[StepRow]) -> float:
    return sum(len(row.tokens) for row in rows) * TOKEN_S


@cache
def resumed(
    speed: float, load: float, replicas: tuple[tuple[Role, int], ...] = PAIR, *, lent: bool = False
) -> tuple[float, int]:
    """TTFT of a session that only the store has, and how many of its tokens were loaded.

    speed: of the store, against computing. load: see `Costs`. lent: only the decode worker has it,
    and it is of the link to it that the speed is."""
    loop = VirtualLoop()
    link = speed * EVEN if lent else math.inf
    shape = Shape(
        replicas,
        num_blocks=4096,
        pool=PoolConfig(step_tokens=512, running_max=16),
        kv=KV,
        config=Config(
            router=RouterConfig(conditional=False),
            kv=KVConfig(block_tokens=16),
            store=StoreConfig(idle_s=0.1),
        ),
        costs=Costs(speed * EVEN, load, link),
        link_bytes_per_s=min(link, 25e9),
        store_bytes_per_s=0.0 if lent else speed * EVEN,
        store_latency_s=LATENCY_S,
    )

    async def work() -> tuple[float, int]:
        cluster = Cluster(shape, lambda role: step_s, VirtualClock(loop), random.Random(1))
        cluster.start()
        prompt = tuple(range(7, 7 + TOKENS))

        async def ask(name: str, tokens: tuple[int, ...]) -> None:
            await asyncio.sleep(1.0)
            now = cluster.clock.now_ns()
            request = Request(
                request_id=name, salt="", session_id="s", prompt=tokens,
                sampling=SamplingParams(temperature=0.0, seed=0, ignore_eos=True),
                max_tokens=2, accepted_ns=now, deadline_ns=now + ns(3600),
            )  # fmt: skip
            assert cluster.submit(request) is None
            await cluster.quiet()

        await ask("first", prompt)
        await asyncio.sleep(600.0)  # it rests, and is stored
        for role, _ in replicas[:1] if lent else replicas:
            await cluster.kill(f"{role.value}-0")
            cluster.spawn(f"{role.value}-0", role)
        await ask("second", prompt + tuple(range(TURN)))
        seen = cluster.seen["second"]
        assert isinstance(seen.outcome, Outcome)
        usage = seen.outcome.usage
        assert usage.computed_tokens + usage.loaded_tokens == TOKENS + TURN
        await asyncio.sleep(5.0)
        cluster.check_quiet()
        await cluster.close()
        return seen.ttft_s, usage.loaded_tokens

    return loop.run(work())


LOAD_ALL, RECOMPUTE, WEIGHED = 1e-9, 1e9, 1.0


@pytest.mark.parametrize("replicas", [PAIR, ONE])
@pytest.mark.parametrize("speed", [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0])
def test_what_the_router_decides_is_about_the_best_of_all_ways(
    speed: float, replicas: tuple[tuple[Role, int], ...]
) -> None:
    alone = [resumed(speed, way, replicas)[0] for way in (LOAD_ALL, RECOMPUTE)]
    assert resumed(speed, WEIGHED, replicas)[0] <= 1.02 * min(alone)


@pytest.mark.parametrize("replicas", [PAIR, ONE])
def test_a_slow_store_is_left_alone_and_a_fast_one_gives_all(
    replicas: tuple[tuple[Role, int], ...],
) -> None:
    assert resumed(0.01, WEIGHED, replicas)[1] == 0
    assert resumed(0.01, RECOMPUTE, replicas)[0] < resumed(0.01, LOAD_ALL, replicas)[0] / 50
    assert resumed(100.0, WEIGHED, replicas)[1] == TOKENS
    assert resumed(100.0, LOAD_ALL, replicas)[0] < resumed(100.0, RECOMPUTE, replicas)[0] / 20


@pytest.mark.parametrize("replicas", [PAIR, ONE])
def test_in_between_both_ends_together_take_half(
    replicas: tuple[tuple[Role, int], ...],
) -> None:
    seconds, loaded = resumed(1.0, WEIGHED, replicas)
    assert loaded == pytest.approx(TOKENS / 2, rel=0.05)
    assert seconds < 0.55 * min(resumed(1.0, w, replicas)[0] for w in (LOAD_ALL, RECOMPUTE))


@pytest.mark.parametrize("replicas", [PAIR, ONE])
def test_a_store_that_is_slower_than_it_was_thought_to_be_costs_little(
    replicas: tuple[tuple[Role, int], ...],
) -> None:
    """Both ends are to meet where they do at equal speed, but the store is a hundred times slower:
    it is computed on from there."""
    recomputed = resumed(0.01, RECOMPUTE, replicas)[0]
    assert resumed(0.01, 0.01, replicas)[0] < 1.1 * recomputed


@pytest.mark.parametrize("speed", [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0])
def test_what_a_worker_lends_is_weighed_alike(speed: float) -> None:
    """The decode worker has the session in memory, the prefill worker is new."""
    weighed, loaded = resumed(speed, WEIGHED, lent=True)
    alone = [resumed(speed, way, lent=True)[0] for way in (LOAD_ALL, RECOMPUTE)]
    assert weighed <= 1.02 * min(alone)
    assert resumed(speed, LOAD_ALL, lent=True)[1] == TOKENS
    assert (loaded == 0) == (speed < 0.2)
