"""Requests go where the KV of their prompt is, and what the router predicts is what workers find.

Workers that come later have lesser names, so that all else being equal they would be chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import runtime.control
from eastwest.answers import KvHits, KvIndexStatus, ServerLoads
from eastwest.client import AsyncClient
from eastwest.testing.engine import expected_output
from eastwest.types import Role
from kv_store.embedded import EmbeddedValkey
from tests.integration.test_serving import a_prompt
from tests.integration.test_sessions import a_stored_rig, replace_workers
from tests.rig import WAIT_S, Rig, a_config, a_rig

PREFIX = {"policy": "prefix"}
HOLDERS = ("prefill-0", "decode-0")
OTHERS = ("a-prefill", "a-decode")


async def start_others(rig: Rig) -> None:
    for name, role in zip(OTHERS, (Role.PREFILL, Role.DECODE), strict=True):
        await rig.start(name, role)
        await rig.until_up(name)


async def ask(rig: Rig, prompt: list[int], client: AsyncClient | None = None) -> tuple[str, str]:
    """Who served the prompt; its output is checked."""
    client = client or rig.client
    completion = await client.generate(prompt, temperature=0.0, max_tokens=12)
    assert list(completion.token_ids) == expected_output(prompt, 12)
    return completion.prefill_worker, completion.decode_worker


async def index_of(rig: Rig) -> KvIndexStatus:
    return (await rig.client.loads()).kv_index


async def until(rig: Rig, seen: Callable[[ServerLoads], bool]) -> None:
    """Until the router says so; no event announces it."""
    async with asyncio.timeout(WAIT_S):
        while not seen(await rig.client.loads()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_prompt_goes_where_its_prefix_is(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, config=a_config(router=PREFIX)) as rig:
        prompt = a_prompt(80)
        assert await ask(rig, prompt) == HOLDERS
        await start_others(rig)
        assert await ask(rig, [*prompt, 3, 4, 5]) == HOLDERS
        assert await ask(rig, a_prompt(80, seed=1)) == OTHERS
        # 80 tokens are 10 blocks, which the prompt of 83 can all reuse.
        index = await index_of(rig)
        assert index.prefill == index.decode == KvHits(243, 80, 80)
        assert index.resyncs == 0


async def test_one_tenant_is_not_routed_by_what_another_has(tiny_model_dir: Path) -> None:
    async with (
        a_rig(tiny_model_dir, config=a_config(router=PREFIX)) as rig,
        AsyncClient(rig.address, tenant="b", timeout_s=WAIT_S) as other,
    ):
        prompt = a_prompt(80)
        assert await ask(rig, prompt) == HOLDERS
        await start_others(rig)
        assert await ask(rig, prompt, other) == OTHERS
        assert await ask(rig, prompt) == HOLDERS


async def test_missed_events_are_made_up_for(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.control, "KV_EVENTS_MAX", 0)
    async with a_rig(tiny_model_dir, config=a_config(router=PREFIX)) as rig:
        prompt = a_prompt(80)
        assert await ask(rig, prompt) == HOLDERS
        # The prompt and 11 tokens of output are 11 full blocks, the first 10 on both workers.
        await until(rig, lambda loads: loads.kv_index.blocks >= 11)
        assert (await index_of(rig)).resyncs >= 1
        await start_others(rig)
        assert await ask(rig, [*prompt, 3, 4, 5]) == HOLDERS


async def test_a_worker_that_is_connected_anew_says_what_it_holds(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, config=a_config(router=PREFIX)) as rig:
        prompt = a_prompt(80)
        assert await ask(rig, prompt) == HOLDERS
        for name in HOLDERS:
            await rig.router.remove_worker(name)
        await start_others(rig)
        for name in HOLDERS:
            rig.router.add_worker(name, rig.replicas[name].info().address)
            await rig.until_up(name)
        # A worker reports its load after all of its blocks.
        await until(rig, lambda loads: all(w.free_blocks for w in loads.workers))
        assert await ask(rig, [*prompt, 3, 4, 5]) == HOLDERS


async def test_what_was_evicted_is_not_predicted(tiny_model_dir: Path) -> None:
    small = {"kv_tokens": 160}
    config = a_config(router=PREFIX, prefill=small, decode=small, store={"enabled": False})
    async with a_rig(tiny_model_dir, config=config) as rig:
        for seed in range(4):
            await ask(rig, a_prompt(100, seed=seed))
        await ask(rig, a_prompt(100))
        index = await index_of(rig)
        assert index.prefill.predicted_tokens == index.prefill.found_tokens
        assert index.decode.predicted_tokens == index.decode.found_tokens


async def test_what_is_in_the_store_is_predicted_for_any_worker(tiny_model_dir: Path) -> None:
    async with a_stored_rig(tiny_model_dir, EmbeddedValkey(64 << 20)) as rig:
        prompt, more = a_prompt(60), a_prompt(21, seed=3)
        await rig.client.generate(prompt, session="s", temperature=0.0, max_tokens=12)
        await until(rig, lambda loads: any(w.sessions_spilled for w in loads.workers))
        await replace_workers(rig)
        before = (await index_of(rig)).prefill
        second = await rig.client.generate(more, session="s", temperature=0.0, max_tokens=12)
        after = (await index_of(rig)).prefill
        assert second.usage.loaded_tokens == 64
        assert after.found_tokens - before.found_tokens == 64
        assert after.predicted_tokens - before.predicted_tokens == 64
