"""What a client that goes away still costs: engine steps that begin for it, and how long its blocks
stay taken.

The default model behind a router and real gRPC, one prefill and one decode worker, all in one
process, beside other streams. A client begins, and disconnects at a random moment of the phase.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from deploy.replica import Identity, Replica, pool_of
from eastwest.client import AsyncClient
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.ports import Engine, StepProgress, StepRow
from eastwest.types import Role, SampledToken
from engine.catalog import resolve_model
from engine.torch_engine import load_engine
from router.server import Router
from runtime.rank import Rank, Ways
from runtime.rank_group import Breakage, RankGroup

HOST = "127.0.0.1"
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 400
OTHERS = 2
STEPS_MAX, FREE_MAX_S = 1, 1.0
POLL_S = 0.001


class RecordedEngine:
    """Is the `Engine` inside, and remembers when each step began, and for which first tokens."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.steps: list[tuple[float, set[int]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(
        self, rows: Sequence[StepRow], progress: StepProgress | None = None
    ) -> list[SampledToken | None]:
        marks = {row.sample.prompt[0] if row.sample else row.tokens[0] for row in rows}
        self.steps.append((time.perf_counter(), marks))
        return self._engine.step(rows, progress)

    def begun_for(self, mark: int, since: float = 0.0) -> int:
        """Steps with a row of the prompt that consists of `mark`, begun after `since`."""
        return sum(begun > since and mark in marks for begun, marks in self.steps)


@dataclass(frozen=True, slots=True)
class Served:
    """address: of the router."""

    address: str
    engines: dict[Role, RecordedEngine]
    replicas: dict[Role, Replica]

    def holds(self, request_id: str = "") -> bool:
        """Whether any blocks are held, for this request or for any."""
        owners = [o for replica in self.replicas.values() for o in replica.audit().owners]
        return any(f"{request_id}@" in owner for owner in owners)


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one client that went away: steps begun after that, and seconds until its blocks were
    free."""

    steps: int
    free_s: float


def rows(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    return asyncio.run(_run(6 if quick else 24))


async def _run(count: int) -> list[dict[str, Any]]:
    rng, found = random.Random(1), []
    async with _deployment() as served:
        for others in (0, OTHERS):
            for role in (Role.PREFILL, Role.DECODE):
                samples = [await _one(served, role, rng, others) for _ in range(count)]
                found += _rows(role, others, samples)
    return found


@asynccontextmanager
async def _deployment() -> AsyncIterator[Served]:
    pool = {"kv_tokens": 8192, "step_tokens": 32}
    config = Config.model_validate(
        {"router": {"port": 0}, "prefill": pool, "decode": pool, "store": {"enabled": False}}
    )
    directory, clock = resolve_model(config.model), SystemClock()
    router = Router(config, directory, None, clock, random.Random(1))
    async with AsyncExitStack() as stack:
        address = await router.start()
        stack.push_async_callback(router.stop)
        served = Served(address, {}, {})
        for role in (Role.PREFILL, Role.DECODE):
            recorded = RecordedEngine(
                load_engine(directory, config.model, pool_of(config, role), config.kv)
            )
            identity = Identity(role.value, 1, role, HOST)
            rank = Rank(recorded, Ways(), identity.epoch, config.kv, clock)
            replica = Replica(identity, RankGroup(rank, [], Breakage()), None, config, clock)
            info = await replica.start()
            stack.push_async_callback(replica.stop)
            router.add_worker(role.value, info.address)
            served.engines[role], served.replicas[role] = recorded, replica
        stack.push_async_callback(router.stop)  # before the replicas
        await router.wait_ready()
        async with AsyncClient(address) as client:
            await client.generate([1] * 64, max_tokens=8, ignore_eos=True)
        yield served


async def _one(served: Served, role: Role, rng: random.Random, others: int) -> Sample:
    """A client that goes away in the phase of `role`."""
    engine, mark = served.engines[role], rng.randrange(1000, 40_000)
    async with AsyncClient(served.address) as steady:
        beside = [
            steady.generate([rng.randrange(1000, 40_000)] * 32, max_tokens=600, ignore_eos=True)
            for _ in range(others)
        ]
        for stream in beside:
            await anext(aiter(stream))
        client = AsyncClient(served.address)
        generation = client.generate(
            [mark] * PROMPT_TOKENS, max_tokens=OUTPUT_TOKENS, ignore_eos=True, request_id="gone"
        )
        waiting = asyncio.ensure_future(generation.result())
        # Somewhere in the phase: it has many more steps than these.
        wanted = rng.randrange(1, 8)
        while engine.begun_for(mark) < wanted:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(rng.uniform(0.0, 0.02))
        gone = time.perf_counter()
        await client.close()
        await _until_free(served, "gone")
        free_s = time.perf_counter() - gone
        await asyncio.gather(waiting, return_exceptions=True)
        for stream in beside:
            stream.cancel()
        steps = sum(e.begun_for(mark, gone) for e in served.engines.values())
    await _until_free(served)
    return Sample(steps, free_s)


async def _until_free(served: Served, request_id: str = "") -> None:
    while served.holds(request_id):  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(POLL_S)


def _rows(role: Role, others: int, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    where = f"client gone in {role.value}, {others} streams beside it"
    steps, free_s = max(s.steps for s in samples), max(s.free_s for s in samples)
    middle = statistics.median(s.free_s for s in samples)
    rows = [
        (f"steps begun for it afterwards, most of {len(samples)}", steps, "steps", STEPS_MAX),
        ("its blocks free after, most", 1e3 * free_s, "ms", 1e3 * FREE_MAX_S),
        ("its blocks free after, median", 1e3 * middle, "ms", 1e3 * FREE_MAX_S),
    ]
    return [
        {
            "metric": f"{where}: {what}", "value": value, "unit": unit, "against": None,
            "against_value": None, "ratio": None, "goal": f"at most {goal:g}", "met": value <= goal,
        }
        for what, value, unit, goal in rows
    ]  # fmt: skip
