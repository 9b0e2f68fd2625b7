"""How much is computed for a client that has gone: no engine step but the one that runs.

`python -m bench operate` measures the same from the client's side, in time as well.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eastwest.client import AsyncClient
from eastwest.types import Role
from tests.integration.test_failures import served
from tests.integration.test_serving import a_prompt
from tests.rig import Rig, a_rig

CHUNKS = 4  # of 32 tokens, as tests.rig has it


def serves(rig: Rig, worker_id: str) -> bool:
    load = rig.replicas[worker_id].load()
    return bool(load.running or load.waiting)


@pytest.mark.parametrize("way", ["cancel", "disconnect", "abort"])
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
async def test_no_step_begins_for_a_client_that_has_gone(
    tiny_model_dir: Path, role: Role, way: str
) -> None:
    async with a_rig(tiny_model_dir) as rig:
        worker_id = f"{role.value}-0"
        engine = rig.engine(worker_id)
        engine.free_steps = 1 if role is Role.PREFILL else 5
        engine.gate.clear()
        client = AsyncClient(rig.address, timeout_s=60.0)
        generation = client.generate(
            a_prompt(32 * CHUNKS), max_tokens=400, ignore_eos=True, request_id="mine"
        )
        waiting = asyncio.ensure_future(generation.result())
        await asyncio.to_thread(engine.held.wait)
        running = len(engine.steps)
        match way:
            case "cancel":
                generation.cancel()
            case "disconnect":
                await client.close()
            case "abort":
                assert await rig.client.abort("mine")
        # The step still runs; what it computes for is gone already.
        await rig.until(lambda: not serves(rig, worker_id))
        assert len(engine.steps) == running
        engine.gate.set()
        await rig.settle()
        rig.assert_clean()
        assert len(engine.steps) == running
        await asyncio.gather(waiting, return_exceptions=True)
        await client.close()
        engine.free_steps = 0
        await served(rig)
