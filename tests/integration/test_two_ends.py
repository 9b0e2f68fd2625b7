"""Stored KV is loaded from its back while its front is computed: the tokens are those that one
engine alone would give, whatever the store does meanwhile, and no block is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

import runtime.stored_prefix
from eastwest.blocks import BlockHash
from eastwest.errors import StoreUnavailable
from eastwest.messages import WorkerInfo
from eastwest.ports import Buffer
from eastwest.testing.engine import SPEC, expected_output
from eastwest.types import Role
from kv_store.memory_store import MemoryBlockStore
from tests.integration.test_prefix_routing import until
from tests.integration.test_serving import a_prompt
from tests.rig import Rig, a_config, a_rig

BLOCK = 8
PROMPT, STORED = 200, 208  # with its 12 tokens of output, but for the last
GIVEN = PROMPT + 12 + 9


class WatchedStore(MemoryBlockStore):
    """Its reads wait for `gate`, the first `free` ones excepted. asked: how many there were, of how
    many blocks. broken_from: the read from which on it does not answer. hole: which of those asked
    for in the second read it does not have after all."""

    def __init__(self) -> None:
        super().__init__(1 << 24)
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[int] = []
        self.free = 0
        self.broken_from: int | None = None
        self.hole: int | None = None

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        self.asked.append(len(hashes))
        if len(self.asked) > self.free:
            await self.gate.wait()
        if self.broken_from is not None and len(self.asked) > self.broken_from:
            raise StoreUnavailable("it is gone")
        blocks = await super().read(hashes)
        return blocks[: self.hole] if len(self.asked) == 2 else blocks


@dataclass
class Even:
    """A token takes as long to load, and to move, as to compute, times a factor."""

    load: float = 1.0
    move: float = 0.0

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        return new_tokens * 1e-2

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        return tokens * 1e-2 * self.load

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        return 1e-2

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        return tokens * 1e-2 * self.move


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.stored_prefix, "BATCH_BYTES", 3 * BLOCK * SPEC.bytes_per_token)


@pytest.fixture(params=["pair", "aggregated"])
def roles(request: pytest.FixtureRequest) -> tuple[Role, ...]:
    """The KV goes to another worker, or is computed and loaded where it belongs."""
    return (Role.PREFILL, Role.DECODE) if request.param == "pair" else (Role.AGGREGATED,)


@dataclass
class Resuming:
    """A session whose KV only the store has. prefill: who loads."""

    rig: Rig
    store: WatchedStore
    prefill: str
    whole: list[int]

    def computed(self) -> list[tuple[int, int]]:
        """What ran on the engine of prompts, in order."""
        rows = [row for rows in self.rig.engine(self.prefill).steps for row in rows]
        spans = [(row.start, row.start + len(row.tokens)) for row in rows]
        return [span for span in spans if span[0] < GIVEN]

    async def answer(self) -> tuple[int, int]:
        """Its next turn is answered as it must be. Tokens loaded, and computed."""
        done = await self.rig.client.generate(
            self.whole[-9:], session="s", must_exist=True, temperature=0.0, max_tokens=6
        )
        assert list(done.token_ids) == expected_output(self.whole, 6)
        assert done.usage.loaded_tokens + done.usage.computed_tokens == GIVEN
        return done.usage.loaded_tokens, done.usage.computed_tokens


@asynccontextmanager
async def resuming(
    model_dir: Path, roles: tuple[Role, ...], costs: Even
) -> AsyncIterator[Resuming]:
    prefill, decode, aggregated = (
        int(role in roles) for role in (Role.PREFILL, Role.DECODE, Role.AGGREGATED)
    )
    store, config = WatchedStore(), a_config(store={"idle_s": 0.01})
    async with a_rig(
        model_dir, prefill=prefill, decode=decode, aggregated=aggregated, config=config,
        store=store, costs=costs,
    ) as rig:  # fmt: skip
        prompt = a_prompt(PROMPT)
        first = await rig.client.generate(prompt, session="s", temperature=0.0, max_tokens=12)
        # The router must have heard of it.
        await until(rig, lambda loads: any(w.sessions_spilled for w in loads.workers))
        for role in roles:
            await rig.start(f"{role.value}-1", role)
            await rig.until_up(f"{role.value}-1")
            await rig.router.remove_worker(f"{role.value}-0")
        whole = [*prompt, *first.token_ids, *a_prompt(9, seed=3)]
        yield Resuming(rig, store, f"{roles[0].value}-1", whole)


async def test_both_ends_meet(tiny_model_dir: Path, roles: tuple[Role, ...]) -> None:
    async with resuming(tiny_model_dir, roles, Even()) as session:
        session.store.free = 2
        session.store.gate.clear()
        answering = asyncio.ensure_future(session.answer())
        await session.rig.until(lambda: bool(session.computed()))
        session.store.gate.set()
        loaded, _ = await answering
        assert 0 < loaded < STORED
        covered = sorted(session.computed())
        assert covered[0][0] == 0
        # What is computed ends where the loads have come to, and goes on behind them.
        (gap,) = [(a[1], b[0]) for a, b in pairwise(covered) if a[1] < b[0]]
        assert gap == (STORED - loaded, STORED)


async def test_all_is_loaded_where_that_is_quick(
    tiny_model_dir: Path, roles: tuple[Role, ...]
) -> None:
    async with resuming(tiny_model_dir, roles, Even(load=1e-3)) as session:
        assert await session.answer() == (STORED, GIVEN - STORED)
        assert sum(session.store.asked) == STORED // BLOCK


async def test_nothing_is_loaded_where_that_is_slow(
    tiny_model_dir: Path, roles: tuple[Role, ...]
) -> None:
    async with resuming(tiny_model_dir, roles, Even(load=1e3)) as session:
        assert await session.answer() == (0, GIVEN)
        assert session.store.asked == []


async def test_a_store_that_never_answers_is_not_waited_for(
    tiny_model_dir: Path, roles: tuple[Role, ...]
) -> None:
    async with resuming(tiny_model_dir, roles, Even()) as session:
        session.store.gate.clear()
        assert await session.answer() == (0, GIVEN)
        assert len(session.store.asked) == 1
        await session.rig.settle()


# With two ends, reads are of single blocks here.
@pytest.mark.parametrize(("load", "read"), [(1.0, BLOCK), (1e-3, 3 * BLOCK)])
async def test_a_store_that_goes_away_costs_computing(
    tiny_model_dir: Path, roles: tuple[Role, ...], load: float, read: int
) -> None:
    async with resuming(tiny_model_dir, roles, Even(load)) as session:
        session.store.broken_from = 1
        loaded, _ = await session.answer()
        assert loaded == read


@pytest.mark.parametrize(("load", "read"), [(1.0, BLOCK), (1e-3, 3 * BLOCK)])
async def test_a_block_that_is_not_there_after_all_costs_computing(
    tiny_model_dir: Path, roles: tuple[Role, ...], load: float, read: int
) -> None:
    async with resuming(tiny_model_dir, roles, Even(load)) as session:
        session.store.hole = 0
        loaded, _ = await session.answer()
        assert loaded == read


async def test_a_request_that_is_given_up_while_it_loads_leaves_nothing(
    tiny_model_dir: Path, roles: tuple[Role, ...]
) -> None:
    async with resuming(tiny_model_dir, roles, Even(load=1e-3)) as session:
        rig, store = session.rig, session.store
        store.gate.clear()
        store.free = 2
        answering = asyncio.ensure_future(
            rig.client.generate(session.whole[-9:], session="s", max_tokens=6).result()
        )
        await rig.until(lambda: len(store.asked) == 3)
        answering.cancel()
        await asyncio.wait([answering])
        await rig.settle()
        rig.assert_clean()
        store.gate.set()
        assert await session.answer() == (STORED, GIVEN - STORED)
