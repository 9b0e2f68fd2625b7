"""One split at a time, live: a deployment on this machine or on a Ray cluster, under open-loop load
over gRPC.

Requests are sent when they are due, however many are still under way, so a deployment that cannot
keep up shows it. Prompts are random tokens, but for what rows of a trace share.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from bench.split.load import Load
from bench.split.points import Point, Sample, point_of
from bench.split.splits import Split
from deploy.launch import Deployment
from eastwest.client import AsyncClient
from eastwest.config import Config
from eastwest.errors import EastWestError
from eastwest.types import Role, Slo
from planner.traces import TraceRow

# Tokens of one block of a trace.
_BLOCK_TOKENS = 512
_FIRST_TOKEN = 1000  # below are often those of a text's frame


class LiveWorkers:
    """config: of every deployment, but for the numbers of replicas. Any number of `run`, then
    `close`; another split needs another deployment.

    requests, span_s: see `SimulatedWorkers`. share: of requests that must keep their targets; a run
    in which they cannot any more is broken off. Each run is a tenant of its own, for which nothing
    is cached.
    """

    def __init__(
        self,
        config: Config,
        load: Load,
        slo: Slo,
        requests: int,
        span_s: float,
        share: float,
        *,
        ray_address: str | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._load = load
        self._slo = slo
        self._requests = requests
        self._span_s = span_s
        self._share = share
        self._ray_address = ray_address
        self._progress = progress
        self._deployment: Deployment | None = None
        self._split: Split | None = None

    async def run(self, split: Split, rate: float, seed: int) -> Point:
        """At one rate; brings the split up where another one, or none, is."""
        address = await self._up(split)
        rows = self._load.rows(rate, max(self._requests, round(rate * self._span_s)), seed)
        tenant = f"{split.name} {rate} {seed}"
        async with AsyncClient(address, tenant=tenant) as client:
            vocab = (await client.model_info()).vocab_size
            return await _Run(client, split, rate, seed, self._slo, self._share, vocab).go(rows)

    async def close(self) -> None:
        """Take down what is up. Idempotent."""
        deployment, self._deployment, self._split = self._deployment, None, None
        if deployment is not None:
            await deployment.stop()

    async def _up(self, split: Split) -> str:
        if self._deployment is None or self._split != split:
            await self.close()
            config = with_replicas(self._config, split)
            deployment = Deployment(config, ray_address=self._ray_address, progress=self._progress)
            await deployment.start()
            self._deployment, self._split = deployment, split
            async with AsyncClient(deployment.address) as client:
                # Steps of a size are slow the first time.
                await client.generate([_FIRST_TOKEN] * 64, max_tokens=4, ignore_eos=True)
        return self._deployment.address


def with_replicas(config: Config, split: Split) -> Config:
    """The configuration of a deployment that is split so, on a port of its own."""
    counts = dict(split.replicas)
    pools = {
        role.value: getattr(config, role.value).model_copy(update={"replicas": counts.get(role, 0)})
        for role in Role
    }
    router = config.router.model_copy(
        update={"port": 0, "http_port": None, "conditional": split.conditional}
    )
    store = config.store.model_copy(update={"enabled": False})
    updated = config.model_copy(update={**pools, "router": router, "store": store})
    return Config.model_validate(updated.model_dump())


class _Run:
    """One rate."""

    def __init__(
        self,
        client: AsyncClient,
        split: Split,
        rate: float,
        seed: int,
        slo: Slo,
        share: float,
        vocab: int,
    ) -> None:
        self._client = client
        self._named = (split.name, rate, seed)
        self._rng = random.Random(seed)
        self._slo = slo
        self._share = share
        self._vocab = vocab
        self._asked_s: list[float] = []
        self._samples: list[Sample] = []
        self._missed = 0
        self._hopeless = asyncio.Event()

    async def go(self, rows: list[TraceRow]) -> Point:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        may_miss = (1 - self._share) * len(rows)
        tasks: list[asyncio.Task[None]] = []
        giving_up = asyncio.ensure_future(self._hopeless.wait())
        try:
            for row in rows:
                assert row.at_s is not None, "rows of a load have times"
                wait_s = max(0.0, began_s + row.at_s - loop.time())
                done, _ = await asyncio.wait({giving_up}, timeout=wait_s)
                if done:
                    break
                self._asked_s.append(row.at_s)
                tasks.append(asyncio.create_task(self._one(row, row.at_s, may_miss)))
            waiting: set[asyncio.Future[Any]] = set(tasks)
            while waiting and not giving_up.done():
                both = {giving_up, *waiting}
                _, left = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                waiting = left - {giving_up}
            stopped = giving_up.done()
        finally:
            giving_up.cancel()
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end
        name, rate, seed = self._named
        return point_of(
            name, rate, seed,
            asked_s=self._asked_s, samples=self._samples, slo=self._slo, stopped=stopped,
        )  # fmt: skip

    async def _one(self, row: TraceRow, at_s: float, may_miss: float) -> None:
        generation = self._client.generate(
            self._prompt(row),
            max_tokens=row.osl,
            temperature=0.0,
            ignore_eos=True,
            slo_ttft_s=self._slo.ttft_s,
            slo_tpot_s=self._slo.tpot_s,
        )
        kept = False
        try:
            done = await generation
            usage = done.usage
            sample = Sample.of(
                at_s, done.timing, usage.prompt_tokens, usage.completion_tokens,
                usage.computed_tokens,
            )  # fmt: skip
            self._samples.append(sample)
            kept = sample.keeps(self._slo)
        except EastWestError:
            pass  # it has no sample, and counts as failed
        self._missed += not kept
        if self._missed > may_miss:
            self._hopeless.set()

    def _prompt(self, row: TraceRow) -> list[int]:
        tokens: list[int] = []
        for block in row.blocks:
            tokens += self._tokens(random.Random(block), _BLOCK_TOKENS)
        return (tokens + self._tokens(self._rng, row.isl))[: row.isl]

    def _tokens(self, rng: random.Random, count: int) -> list[int]:
        first = min(_FIRST_TOKEN, self._vocab // 2)
        return [rng.randrange(first, self._vocab) for _ in range(count)]
