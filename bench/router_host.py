"""The processes of `bench.router` that are ours: ``python -m bench.router_host KIND …``.

A router is the deployed one. A worker is a whole replica as deployed, with its control stream, its
KV and its transfers, over an engine that computes nothing and takes no time of its own. Stand-ins
are workers of which nothing but the control stream is real (`bench.stand_in`). Each prints ``ready
ADDRESS …`` when it serves, and ends when its input does.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import deploy.quiet  # noqa: F401 - before anything that imports gRPC
from bench.stand_in import StandIn
from deploy.replica import Identity, Replica
from deploy.ways import HostWays
from eastwest.clock import SystemClock
from eastwest.config import Config, PoolConfig
from eastwest.garbage import settle
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import ModelInfo
from eastwest.paged_kv import PagedKV, pool_bytes
from eastwest.ports import StepProgress, StepRow
from eastwest.types import Role, SampledToken
from router.server import Router
from runtime.rank import Rank
from runtime.rank_group import form_group
from runtime.rank_service import Place

# KV of a few bytes a token: it moves as any other, and next to nothing is copied.
SPEC = KVSpec(num_layers=1, num_kv_heads=1, key_dim=4, value_dim=4, dtype="float32")
VOCAB = 49_152
MODEL = ModelInfo(
    name="simulated",
    fingerprint="simulated-instant",
    architecture="SimulatedForCausalLM",
    dtype=SPEC.dtype,
    context_tokens=8192,
    vocab_size=VOCAB,
    eos_ids=(2,),
    kv=SPEC,
)
_FIRST_TOKEN, _TOKENS = 1000, 40_000
_POOL = PoolConfig(kv_tokens=1 << 19, step_tokens=8192, running_max=512, waiting_max=4096)


def config() -> Config:
    """Of workers and routers alike."""
    router = Config().router.model_copy(
        update={"port": 0, "http_port": 0, "active_max": 4096, "queue_max": 4096}
    )
    store = Config().store.model_copy(update={"enabled": False})
    return Config(prefill=_POOL, decode=_POOL, router=router, store=store)


class InstantEngine:
    """SIMULATED: is an `Engine`. A step takes no time, and its tokens are words of any kind."""

    model = MODEL
    layout = ParallelLayout()
    rank = 0
    expert_tokens: tuple[int, ...] = ()

    def __init__(self, kv: PagedKV) -> None:
        self.kv = kv

    def step(
        self, rows: Sequence[StepRow], progress: StepProgress | None = None
    ) -> list[SampledToken | None]:
        """See `Engine.step`."""
        if progress is not None:
            progress(range(SPEC.num_layers), [row.start + len(row.tokens) for row in rows])
        return [_sample(row) for row in rows]

    def close(self) -> None:
        """Nothing to free."""


def _sample(row: StepRow) -> SampledToken | None:
    sample = row.sample
    if sample is None:
        return None
    return SampledToken(_FIRST_TOKEN + (sample.prompt[-1] + 31 * len(sample.output)) % _TOKENS)


class _InstantRank(Rank):
    """A rank whose steps need no thread, for they compute nothing. step_s: how long each takes."""

    step_s = 0.0

    async def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        """See `Rank.step`."""
        progress = self._progress(rows, asyncio.get_running_loop())
        tokens = self.engine.step(rows, progress if any(row.transfer for row in rows) else None)
        await asyncio.sleep(self.step_s)
        return tokens


class _Served(Protocol):
    async def stop(self) -> None: ...


async def _worker(arguments: argparse.Namespace) -> tuple[Replica, str]:
    role, clock, tree = Role(arguments.role), SystemClock(), config()
    block_tokens = tree.kv.block_tokens
    shard, blocks = shard_of(SPEC, ParallelLayout(), 0), _POOL.kv_tokens // block_tokens
    ways = HostWays(tree.kv, clock)
    memory = ways.allocate(pool_bytes(SPEC, shard, blocks, block_tokens))
    kv = PagedKV(memory, SPEC, shard, blocks, block_tokens)
    identity = Identity(arguments.id, round(clock.wall_s() * 1e6), role, "127.0.0.1")

    async def load() -> Rank:
        rank = _InstantRank(InstantEngine(kv), ways.ways(), identity.epoch, tree.kv, clock)
        rank.step_s = arguments.step_ms / 1000
        return rank

    place = Place(arguments.id, identity.epoch, 0, ParallelLayout(), "")
    group = await form_group(load(), (), place, silence_s=tree.router.worker_timeout_s)
    replica = Replica(identity, group, None, tree, clock)
    return replica, (await replica.start()).address


class _StandIns:
    """All of one process."""

    def __init__(self, step_s: float) -> None:
        peers: dict[str, StandIn] = {}
        self.workers = [
            StandIn(f"{role.value}-{i}", role, MODEL, peers, step_s)
            for role in (Role.PREFILL, Role.DECODE)
            for i in range(2)
        ]

    async def stop(self) -> None:
        for worker in self.workers:
            await worker.stop()


async def _stand_ins(arguments: argparse.Namespace) -> tuple[_StandIns, str]:
    served = _StandIns(arguments.step_ms / 1000)
    return served, " ".join([f"{w.worker_id}={await w.start()}" for w in served.workers])


async def _router(arguments: argparse.Namespace) -> tuple[Router, str]:
    router = Router(config(), arguments.model, None, SystemClock(), random.Random())
    address = await router.start()
    for pair in arguments.workers:
        worker_id, _, where = pair.partition("=")
        router.add_worker(worker_id, where)
    await router.wait_ready()
    return router, f"{address} {router.http_address}"


async def _serve(arguments: argparse.Namespace) -> None:
    kinds: dict[str, Callable[[argparse.Namespace], Awaitable[tuple[_Served, str]]]]
    kinds = {"router": _router, "worker": _worker, "stand-ins": _stand_ins}
    served, address = await kinds[arguments.kind](arguments)
    settle()
    print("ready", address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await served.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.router_host", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    router = kinds.add_parser("router")
    router.add_argument("model", type=Path)
    router.add_argument("workers", nargs="+", metavar="ID=ADDRESS")
    worker = kinds.add_parser("worker")
    worker.add_argument("id")
    worker.add_argument("role", choices=[role.value for role in Role])
    worker.add_argument("--step-ms", type=float, default=0.0)
    stand_ins = kinds.add_parser("stand-ins")
    stand_ins.add_argument("--step-ms", type=float, default=0.0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
