"""Storms over real processes: kill -9, SIGSTOP, cut, slow, held and damaged connections, a store
that dies and freezes, all at seeded moments, under a constant load of streams with known outputs.

`CHAOS_SEEDS=7:1 python -m pytest -m chaos tests/chaos/test_storms.py` runs seed 7 again; seeds give
the same faults, while what they meet depends on the machine.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.chaos.load import Load
from tests.chaos.storm import Storm
from tests.chaos.world import ROUTERS, a_world

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

STORM_S = 25.0
CLIENTS = 6
FIRST, COUNT = (int(n) for n in os.environ.get("CHAOS_SEEDS", "0:6").split(":"))
PROCESSES = ("worker killed", "worker frozen", "router killed", "router frozen")
NETWORK = ("cut", "slow", "held", "corrupt")
STORE = ("store killed", "store frozen")


async def weather(
    model_dir: Path, logs: Path, seed: int, kinds: tuple[str, ...], storm_s: float = STORM_S
) -> None:
    """A storm, then calm: every stream has ended rightly, and everything is served again."""
    try:
        async with a_world(model_dir, logs, seed) as world:
            load, storm = Load(world, random.Random(seed), CLIENTS), Storm(world, seed, kinds)
            await asyncio.sleep(storm_s)
            await storm.stop()
            await world.mend()
            await load.stop()
            print(f"seed {seed}: {dict(storm.struck)}, {dict(load.ended)}")  # noqa: T201
            assert storm.struck, "a storm without faults"
            assert sum(n for (_, kind), n in load.ended.items() if kind == "completed") > 0
            for router in ROUTERS:
                async with world.client(router) as client:
                    await client.wait_ready(60.0)
            for router in ROUTERS * 3:
                assert await load.one(router) is None, "a fault is left"
    except BaseException as error:
        error.add_note(f"CHAOS_SEEDS={seed}:1 python -m pytest -m chaos {__file__}; logs: {logs}")
        raise


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
@pytest.mark.parametrize(
    "kinds",
    [PROCESSES, NETWORK, STORE, PROCESSES + NETWORK + STORE],
    ids=["processes", "network", "store", "all"],
)
async def test_streams_end_rightly_whatever_happens(
    tiny_model_dir: Path, tmp_path: Path, seed: int, kinds: tuple[str, ...]
) -> None:
    await weather(tiny_model_dir, tmp_path, seed, kinds)
