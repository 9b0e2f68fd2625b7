"""Router, prefill, transfer and decode together: right tokens, nothing left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eastwest.client import AsyncClient
from eastwest.testing.engine import expected_output
from eastwest.types import FinishReason
from tests.rig import a_config, a_rig


def a_prompt(tokens: int, seed: int = 0) -> list[int]:
    return [1 + (7 * i + 13 * seed) % 500 for i in range(tokens)]


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16, 31, 32, 33, 64, 100, 200])
async def test_disaggregated_output_is_right_for_any_prompt_length(
    tiny_model_dir: Path, tokens: int
) -> None:
    async with a_rig(tiny_model_dir) as rig:
        prompt = a_prompt(tokens)
        completion = await rig.client.generate(prompt, temperature=0.0, max_tokens=12)
        assert list(completion.token_ids) == expected_output(prompt, 12)
        assert completion.finish_reason is FinishReason.LENGTH
        assert completion.usage.prompt_tokens == tokens
        assert completion.usage.completion_tokens == 12
        assert completion.usage.computed_tokens == tokens
        assert completion.prefill_worker == "prefill-0"
        assert completion.decode_worker == "decode-0"


async def test_aggregated_output_is_the_same(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, prefill=0, decode=0, aggregated=1) as rig:
        for tokens in (1, 8, 33, 100):
            prompt = a_prompt(tokens)
            completion = await rig.client.generate(prompt, temperature=0.0, max_tokens=12)
            assert list(completion.token_ids) == expected_output(prompt, 12)
            assert completion.prefill_worker == completion.decode_worker == "aggregated-0"
            assert completion.transfer_bytes == 0


async def test_many_requests_at_once_do_not_mix(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, prefill=2, decode=2) as rig:
        prompts = [a_prompt(5 + 11 * i, seed=i) for i in range(24)]
        completions = await asyncio.gather(
            *(rig.client.generate(p, temperature=0.0, max_tokens=10).result() for p in prompts)
        )
        for prompt, completion in zip(prompts, completions, strict=True):
            assert list(completion.token_ids) == expected_output(prompt, 10)
        assert {c.decode_worker for c in completions} == {"decode-0", "decode-1"}


async def test_more_requests_than_fit_the_pool_are_all_served(tiny_model_dir: Path) -> None:
    config = a_config(decode={"kv_tokens": 128}, prefill={"kv_tokens": 128})
    async with a_rig(tiny_model_dir, config=config) as rig:
        prompts = [a_prompt(40, seed=i) for i in range(12)]
        completions = await asyncio.gather(
            *(rig.client.generate(p, temperature=0.0, max_tokens=20).result() for p in prompts)
        )
        for prompt, completion in zip(prompts, completions, strict=True):
            assert list(completion.token_ids) == expected_output(prompt, 20)


async def test_a_seeded_sample_is_reproducible_and_the_first_token_may_be_the_last(
    tiny_model_dir: Path,
) -> None:
    async with a_rig(tiny_model_dir) as rig:
        one, two = [
            await rig.client.generate(a_prompt(20), temperature=0.7, seed=5, max_tokens=6)
            for _ in range(2)
        ]
        assert one.token_ids == two.token_ids
        single = await rig.client.generate(a_prompt(20), temperature=0.0, max_tokens=1)
        assert list(single.token_ids) == expected_output(a_prompt(20), 1)
        assert single.timing.second is None


async def test_the_parts_of_the_timing_sum_exactly(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        completion = await rig.client.generate(a_prompt(100), temperature=0.0, max_tokens=5)
        timing = completion.timing
        assert timing.second is not None
        assert timing.ttft.prefill_ns > 0
        assert timing.second.first_step_ns > 0
        assert timing.e2e_ns >= timing.second.total_ns
        assert completion.transfer_bytes > 0


async def test_a_repeated_prompt_is_found_in_the_caches(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        prompt = a_prompt(100)
        await rig.client.generate(prompt, temperature=0.0, max_tokens=4)
        again = await rig.client.generate(prompt, temperature=0.0, max_tokens=4)
        assert list(again.token_ids) == expected_output(prompt, 4)
        assert again.usage.cached_tokens == 96
        assert again.usage.computed_tokens == 4


async def test_tenants_do_not_share_blocks(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig, AsyncClient(rig.address, tenant="other") as other:
        await rig.client.generate(a_prompt(100), temperature=0.0, max_tokens=4)
        completion = await other.generate(a_prompt(100), temperature=0.0, max_tokens=4)
        assert completion.usage.cached_tokens == 0
        assert completion.usage.computed_tokens == 100
