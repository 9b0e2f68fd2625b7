"""Two router processes over the same workers."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from eastwest.client import AsyncGeneration
from eastwest.errors import Unavailable
from eastwest.testing.audits import audit_of, held
from eastwest.testing.engine import expected_output
from tests.chaos.load import Load
from tests.chaos.world import WAIT_S, World, a_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

COUNT = 300
LONG = 800  # more than is decoded within a lease
PROMPT = list(range(1, 40))


async def begun(generation: AsyncGeneration) -> list[int]:
    """The tokens of its first chunks, the decode worker's among them."""
    tokens: list[int] = []
    async for chunk in generation:
        tokens += chunk.token_ids
        if len(tokens) > 2:
            break
    return tokens


async def owners(world: World) -> set[str]:
    """Who holds blocks, on any worker."""
    reports = [await audit_of(address) for address in world.controls.values()]
    return {owner.split(":")[0] for report in reports for owner in held(report)}


async def test_two_routers_share_workers_sessions_and_even_request_ids(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    async with a_world(tiny_model_dir, tmp_path) as world:
        async with world.client("a") as a, world.client("b") as b:
            both = await asyncio.gather(
                *(
                    c.generate(PROMPT, temperature=0.0, max_tokens=60, request_id="same").result()
                    for c in (a, b)
                )
            )
            assert [list(c.token_ids) for c in both] == [expected_output(PROMPT, 60)] * 2
            history = PROMPT
            for client in (a, b, a):
                turn = [7, 8, 9]
                done = await client.generate(
                    turn if history is not PROMPT else PROMPT, session="s", temperature=0.0,
                    max_tokens=20, must_exist=history is not PROMPT,
                )  # fmt: skip
                whole = history if history is PROMPT else [*history, *turn]
                assert list(done.token_ids) == expected_output(whole, 20)
                history = [*whole, *done.token_ids]
        load = Load(world, random.Random(3), clients=8)
        for router in ("a", "b", "a", "b"):
            assert await load.one(router, turns=3) is None
        await load.stop()
        assert {kind for _, kind in load.ended} == {"completed"}


async def test_a_killed_router_harms_only_its_own_streams(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    async with (
        a_world(tiny_model_dir, tmp_path) as world,
        world.client("a") as a,
        world.client("b") as b,
    ):
        lost = [a.generate(PROMPT, temperature=0.0, max_tokens=COUNT) for _ in range(3)]
        kept = [b.generate(PROMPT, temperature=0.0, max_tokens=COUNT) for _ in range(3)]
        for generation in lost:
            await begun(generation)
        tokens = [await begun(generation) for generation in kept]
        await world.routers["a"].kill()
        for generation in lost:
            with pytest.raises(Unavailable) as caught:
                await generation
            assert caught.value.status.retriable
        for generation, first in zip(kept, tokens, strict=True):
            rest = [token async for chunk in generation for token in chunk.token_ids]
            assert first + rest == expected_output(PROMPT, COUNT)
            assert (await generation).usage.migrations == 0
        await world.assert_clean()
        # Who follows the dead router keeps the workers that it knew.
        done = await b.generate(PROMPT, temperature=0.0, max_tokens=20)
        assert list(done.token_ids) == expected_output(PROMPT, 20)


async def test_what_a_frozen_router_held_is_freed_by_lease(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    expected = expected_output(PROMPT, LONG)
    async with (
        a_world(tiny_model_dir, tmp_path) as world,
        world.client("a") as a,
        world.client("b") as b,
    ):
        frozen = [a.generate(PROMPT, temperature=0.0, max_tokens=LONG) for _ in range(3)]
        tokens = [await begun(generation) for generation in frozen]
        world.routers["a"].freeze()
        assert await owners(world)
        async with asyncio.timeout(WAIT_S):
            while await owners(world):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.05)
        done = await b.generate(PROMPT, temperature=0.0, max_tokens=20)
        assert list(done.token_ids) == expected_output(PROMPT, 20)
        # Awake, it hears that its leases are gone, and its streams go on elsewhere.
        world.routers["a"].wake()
        for generation, first in zip(frozen, tokens, strict=True):
            rest = [token async for chunk in generation for token in chunk.token_ids]
            assert first + rest == expected
            assert (await generation).usage.migrations == 1
