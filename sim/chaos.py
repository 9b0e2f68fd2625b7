"""Faults at random times against a SIMULATED cluster, and what must hold whatever happens.

A run is a storm, then calm. In the storm requests come, are cancelled and run out of time, replicas
and routers are killed and come back, workers are drained and replaced, streams are cut, workers
hang, and transfers are lost or slow. Every other run has two routers over the same replicas.
Watched throughout: every token exactly once and in order, one ending each, the scheduler's own
books, nothing left to do on a worker that has drained. After the calm: every request has ended, no
block is held or leaked, no transfer is open.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass, replace

from eastwest.clock import ns, seconds
from eastwest.config import Config, KVConfig, PoolConfig, RouterConfig
from eastwest.errors import Cancelled
from eastwest.layout import KVSpec
from eastwest.types import Role, SamplingParams
from router.requests import Request
from sim.cluster import Cluster, Shape
from sim.engine import StepTime
from sim.links import LinkFaults
from sim.virtual_loop import VirtualClock, VirtualLoop

STORM_S = 20.0
CALM_S = 120.0
_SPEC = KVSpec(num_layers=2, num_kv_heads=2, key_dim=8, value_dim=8, dtype="bfloat16")
_CONFIG = Config(
    router=RouterConfig(
        queue_max=24, active_max=24, heartbeat_s=1.0, worker_timeout_s=3.0, attempts_max=3
    ),
    kv=KVConfig(lease_s=5.0),
)
_ONE_ATTEMPT = _CONFIG.router.model_copy(update={"attempts_max": 1})
_SHAPES = (
    ((Role.PREFILL, 1), (Role.DECODE, 1)),
    ((Role.PREFILL, 2), (Role.DECODE, 2)),
    ((Role.PREFILL, 1), (Role.DECODE, 3)),
    ((Role.AGGREGATED, 2),),
    ((Role.PREFILL, 1), (Role.DECODE, 1), (Role.AGGREGATED, 1)),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to. digest: of everything that happened, in order. leaves: workers that have
    drained."""

    seed: int
    requests: int
    completed: int
    failed: int
    events: int
    virtual_s: float
    digest: str
    leaves: int = 0


class Storm:
    """One run. drains_only: nothing worse happens than that workers are drained, and no request may
    fail."""

    def __init__(self, seed: int, *, drains_only: bool = False) -> None:
        self.seed = seed
        self.drains_only = drains_only
        self.rng = random.Random(seed)
        self.routers_rng = random.Random(f"{seed} routers")
        self.log = hashlib.blake2b(digest_size=16)
        self.loop = VirtualLoop()
        self.lines: list[str] = []

    def run(self) -> Result:
        """Raises `AssertionError` where a promise is broken."""
        return self.loop.run(self._run())

    async def _run(self) -> Result:
        rng, gentle = self.rng, self.drains_only
        pool = PoolConfig(step_tokens=rng.choice((64, 512)), running_max=rng.choice((4, 32)))
        shape = Shape(
            rng.choice(_SHAPES), num_blocks=rng.choice((48, 200)), pool=pool, kv=_SPEC,
            link_bytes_per_s=rng.choice((1e5, 1e8)), message_s=rng.choice((1e-4, 2e-2)),
            config=_CONFIG.model_copy(update={"router": _ONE_ATTEMPT}) if gentle else _CONFIG,
            routers=self.routers_rng.choice((1, 2)),
        )  # fmt: skip
        clock = VirtualClock(self.loop)
        cluster = Cluster(shape, _step_time, clock, rng, record=self._record)
        faults = LinkFaults(lost=rng.choice((0.0, 0.1)), slow=rng.choice((0.0, 0.2)))
        cluster.fabric.faults = LinkFaults() if gentle else faults
        cluster.start()
        count = rng.randrange(5, 40)
        work = [self._client(cluster, f"r{i}") for i in range(count)]
        await asyncio.gather(*work, self._strike(cluster), self._strike_routers(cluster))
        cluster.fabric.faults = LinkFaults()
        async with asyncio.timeout(CALM_S):
            await cluster.quiet()
        # Leases that nobody renews any more run out; hung workers wake, and are told what to drop.
        await asyncio.sleep(_CONFIG.kv.lease_s + 20.0)
        cluster.check_quiet()
        await cluster.close()
        done = sum(1 for _ in cluster.finished())
        assert done == count or not gentle, "a drain has ended a request"
        return Result(
            self.seed, count, done, count - done, cluster.events, self.loop.time(),
            self.log.hexdigest(), cluster.leaves,
        )  # fmt: skip

    async def _client(self, cluster: Cluster, name: str) -> None:
        rng = self.rng
        await asyncio.sleep(rng.uniform(0, STORM_S))
        now = cluster.clock.now_ns()
        prompt_tokens = rng.choice((1, 16, 40, 150))
        timeout_s = 600.0 if self.drains_only else rng.choice((1.0, 60.0, 60.0, 60.0))
        shared = rng.choice((0, 0, 7))  # some begin alike
        first = shared or rng.randrange(1, 1000)
        request = Request(
            request_id=name,
            salt=rng.choice(("", "other")),
            session_id=rng.choice(("", "", f"session {name}")),
            prompt=(first, *range(1, prompt_tokens)),
            sampling=SamplingParams(temperature=0.0, seed=0, ignore_eos=True),
            max_tokens=rng.choice((1, 2, 20, 120)),
            accepted_ns=now,
            deadline_ns=now + ns(timeout_s),
            priority=rng.choice((0, 0, 3)),
        )
        index = self.routers_rng.randrange(len(cluster.routers))
        refused = cluster.submit(request, index)
        if refused is None and not self.drains_only and rng.random() < 0.15:
            await asyncio.sleep(rng.expovariate(1.0))
            error = Cancelled("the client went away")
            cluster.cancel(name, error)

    async def _strike(self, cluster: Cluster) -> None:
        """Faults, one after the other, until the storm is over."""
        rng = self.rng
        mean_s = rng.choice((1.0, 4.0, 100.0))
        while seconds(cluster.clock.now_ns()) < STORM_S:
            await asyncio.sleep(rng.expovariate(1 / mean_s))
            if not cluster.replicas:
                continue  # all have left, and others are on their way
            worker_id = rng.choice(sorted(cluster.replicas))
            match 3 if self.drains_only else rng.randrange(4):
                case 0:
                    role = cluster.replicas[worker_id].info.role
                    await cluster.kill(worker_id)
                    await asyncio.sleep(rng.uniform(0.1, 3.0))
                    cluster.spawn(worker_id, role)
                case 1:
                    for_s = rng.uniform(0.1, 8.0)
                    for router in cluster.routers:
                        router.stall(worker_id, for_s)
                case 2:
                    replica = cluster.replicas[worker_id]
                    cluster.router.disconnect(worker_id, "the stream was cut")
                    await asyncio.sleep(rng.uniform(0.0, 1.0))
                    if replica.alive:
                        cluster.router.connect(replica)
                case 3:
                    cluster.drain(worker_id, rng.choice((0.0, 0.5, 5.0, 60.0)))
                    if rng.random() < 0.3:
                        await asyncio.sleep(rng.uniform(0.0, 1.0))
                        cluster.undrain(worker_id)

    async def _strike_routers(self, cluster: Cluster) -> None:
        """Of two routers, one is killed and comes back, stands still, or loses a stream."""
        rng = self.routers_rng
        if len(cluster.routers) == 1 or self.drains_only:
            return
        while seconds(cluster.clock.now_ns()) < STORM_S:
            await asyncio.sleep(rng.expovariate(1 / 3.0))
            index = rng.randrange(len(cluster.routers))
            match rng.randrange(3):
                case 0:
                    cluster.kill_router(index)
                    await asyncio.sleep(rng.uniform(0.1, 3.0))
                    cluster.revive_router(index)
                case 1:
                    cluster.routers[index].freeze(rng.uniform(0.1, 8.0))
                case 2:
                    worker_id = rng.choice(sorted(cluster.replicas) or [""])
                    cluster.routers[index].disconnect(worker_id, "the stream was cut")
                    await asyncio.sleep(rng.uniform(0.0, 1.0))
                    if (replica := cluster.replicas.get(worker_id)) is not None:
                        cluster.routers[index].connect(replica)

    def _record(self, line: str) -> None:
        self.log.update(line.encode() + b"\n")
        self.lines.append(line)


def _step_time(role: Role) -> StepTime:
    """A millisecond a step, and some for each token."""

    return lambda rows: 1e-3 + 2e-5 * sum([len(row.tokens) for row in rows])


def run_seed(seed: int, *, drains_only: bool = False) -> Result:
    """One storm. Raises `AssertionError` where a promise is broken, and what else may go wrong;
    naming the seed."""
    storm = Storm(seed, drains_only=drains_only)
    try:
        return storm.run()
    except Exception as error:
        tail = "\n".join(storm.lines[-20:])
        error.add_note(f"seed {seed}: python -m sim chaos --seed {seed}\n{tail}")
        raise


def summary(results: list[Result]) -> Result:
    """All runs as one."""
    first = results[0]
    digest = hashlib.blake2b("".join(r.digest for r in results).encode(), digest_size=16)
    return replace(
        first,
        requests=sum(r.requests for r in results),
        completed=sum(r.completed for r in results),
        failed=sum(r.failed for r in results),
        events=sum(r.events for r in results),
        virtual_s=sum(r.virtual_s for r in results),
        digest=digest.hexdigest(),
        leaves=sum(r.leaves for r in results),
    )
