"""Sessions rest, spill, and resume on another worker with the KV they had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eastwest.clock import SystemClock
from eastwest.config import Config, StoreConfig
from eastwest.errors import NotFound
from eastwest.testing.engine import SPEC, expected_output, simulated_model
from eastwest.types import Role
from kv_store.connect import open_block_store, open_session_store
from kv_store.embedded import EmbeddedValkey
from tests.integration.test_serving import a_prompt
from tests.rig import Rig, a_config, a_rig


@pytest.fixture
def valkey() -> EmbeddedValkey:
    return EmbeddedValkey(64 << 20)


@asynccontextmanager
async def a_stored_rig(
    model_dir: Path, valkey: EmbeddedValkey, *, idle_s: float = 0.05, **sections: dict[str, object]
) -> AsyncIterator[Rig]:
    """A rig with a real Valkey for blocks and sessions."""
    store_section = {"idle_s": idle_s, "timeout_s": 2.0, "retry_after_s": 0.05}
    config: Config = a_config(store=store_section, **sections)
    store_config: StoreConfig = config.store
    clock = SystemClock()
    with valkey:
        blocks = open_block_store(
            store_config, valkey.url, SPEC, config.kv.block_tokens,
            simulated_model().fingerprint, clock,
        )  # fmt: skip
        sessions = open_session_store(store_config, valkey.url, clock)
        try:
            async with a_rig(model_dir, config=config, store=blocks, sessions=sessions) as rig:
                yield rig
        finally:
            await sessions.close()
            await blocks.close()


async def replace_workers(rig: Rig) -> None:
    """Others in the place of the first prefill and decode worker, that hold nothing."""
    for role in (Role.PREFILL, Role.DECODE):
        await rig.start(f"{role.value}-1", role)
        await rig.until_up(f"{role.value}-1")
        await rig.stop(f"{role.value}-0")


def spilled(rig: Rig) -> int:
    return sum(r.load().sessions_spilled for r in rig.replicas.values())


async def test_a_session_spills_and_resumes_on_new_workers(
    tiny_model_dir: Path, valkey: EmbeddedValkey
) -> None:
    async with a_stored_rig(tiny_model_dir, valkey) as rig:
        prompt, more = a_prompt(60), a_prompt(21, seed=3)
        first = await rig.client.generate(prompt, session="s", temperature=0.0, max_tokens=12)
        await rig.until(lambda: spilled(rig) == 1)
        await replace_workers(rig)
        second = await rig.client.generate(
            more, session="s", must_exist=True, temperature=0.0, max_tokens=12
        )
        whole = [*prompt, *first.token_ids, *more]
        assert list(second.token_ids) == expected_output(whole, 12)
        assert second.decode_worker == "decode-1"
        # 60 + 12 - 1 tokens had KV: 8 full blocks of 8 tokens.
        assert second.usage.loaded_tokens == 64
        assert second.usage.cached_tokens == 64
        assert second.usage.computed_tokens == len(whole) - 64


async def test_an_unknown_session_is_refused(tiny_model_dir: Path, valkey: EmbeddedValkey) -> None:
    async with a_stored_rig(tiny_model_dir, valkey) as rig:
        with pytest.raises(NotFound, match="unknown"):
            await rig.client.generate(a_prompt(5), session="unknown", must_exist=True, max_tokens=1)


async def test_serving_goes_on_while_the_store_is_down_and_uses_it_again(
    tiny_model_dir: Path, valkey: EmbeddedValkey
) -> None:
    async with a_stored_rig(tiny_model_dir, valkey) as rig:
        await rig.client.generate(a_prompt(30), session="a", temperature=0.0, max_tokens=8)
        await rig.until(lambda: spilled(rig) == 1)
        valkey.kill()
        prompt, more = a_prompt(40, seed=1), a_prompt(9, seed=2)
        first = await rig.client.generate(prompt, session="b", temperature=0.0, max_tokens=8)
        assert list(first.token_ids) == expected_output(prompt, 8)
        second = await rig.client.generate(more, session="b", temperature=0.0, max_tokens=8)
        whole = [*prompt, *first.token_ids, *more]
        assert list(second.token_ids) == expected_output(whole, 8)
        assert spilled(rig) == 1
        valkey.start()
        await rig.until(lambda: spilled(rig) >= 2)


async def test_memory_pressure_spills_idle_sessions_first(
    tiny_model_dir: Path, valkey: EmbeddedValkey
) -> None:
    async with a_stored_rig(
        tiny_model_dir, valkey, idle_s=3600.0, decode={"kv_tokens": 160}
    ) as rig:
        outputs = []
        for i in range(6):
            completion = await rig.client.generate(
                a_prompt(50, seed=i), session=f"s{i}", temperature=0.0, max_tokens=10
            )
            assert list(completion.token_ids) == expected_output(a_prompt(50, seed=i), 10)
            outputs.append(completion.token_ids)
        assert spilled(rig) >= 3
        back = await rig.client.generate(
            a_prompt(3), session="s0", must_exist=True, temperature=0.0, max_tokens=4
        )
        whole = [*a_prompt(50), *outputs[0], *a_prompt(3)]
        assert list(back.token_ids) == expected_output(whole, 4)
        # The prefill worker has those of the prompt; those of the answer were dropped, and stored.
        assert back.usage.loaded_tokens == 8


async def test_pressure_without_a_store_drops_sessions_and_serves(tiny_model_dir: Path) -> None:
    config = a_config(decode={"kv_tokens": 160}, store={"enabled": False})
    async with a_rig(tiny_model_dir, config=config) as rig:
        for i in range(6):
            completion = await rig.client.generate(
                a_prompt(50, seed=i), session=f"s{i}", temperature=0.0, max_tokens=10
            )
            assert list(completion.token_ids) == expected_output(a_prompt(50, seed=i), 10)
