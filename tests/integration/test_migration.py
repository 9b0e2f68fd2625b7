"""Workers that are lost in mid-stream: the stream goes on elsewhere with the tokens of an
undisturbed run, greedy and sampled, and nothing is left behind on those that live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eastwest.client import AsyncGeneration
from eastwest.errors import Cancelled, DeadlineExceeded, InternalError, Phase, Unavailable
from eastwest.testing.engine import expected_output
from eastwest.types import Role, SamplingParams
from kv_store.embedded import EmbeddedValkey
from tests.integration.test_serving import a_prompt
from tests.integration.test_sessions import a_stored_rig, spilled
from tests.rig import Rig, a_config, a_rig

COUNT = 40
GREEDY = SamplingParams(temperature=0.0, max_tokens=COUNT)
SAMPLED = SamplingParams(temperature=0.8, seed=11, max_tokens=COUNT)
BOTH = pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


async def tokens_of(generation: AsyncGeneration) -> list[int]:
    """All tokens, as the stream brings them."""
    return [token async for chunk in generation for token in chunk.token_ids]


async def until_held(rig: Rig, worker_id: str) -> None:
    await asyncio.to_thread(rig.engine(worker_id).held.wait)


@asynccontextmanager
async def lost(rig: Rig, *worker_ids: str) -> AsyncIterator[None]:
    """Workers that die in the midst of a step, which ends when the context does."""
    dying = [asyncio.ensure_future(rig.kill(worker_id)) for worker_id in worker_ids]
    engines = [rig.engine(worker_id) for worker_id in worker_ids]
    yield
    for engine in engines:
        engine.gate.set()
    await asyncio.gather(*dying)


def hold(rig: Rig, worker_id: str, steps: int) -> None:
    """The worker's engine gets stuck after so many more steps."""
    engine = rig.engine(worker_id)
    engine.free_steps = len(engine.steps) + steps
    engine.gate.clear()


@BOTH
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 8, 31, COUNT - 2])
async def test_a_decode_worker_that_dies_at_any_step(
    tiny_model_dir: Path, sampling: SamplingParams, steps: int
) -> None:
    async with a_rig(tiny_model_dir, decode=2) as rig:
        hold(rig, "decode-0", steps)
        prompt = a_prompt(45)
        generation = rig.client.generate(prompt, sampling=sampling)
        tokens = asyncio.ensure_future(tokens_of(generation))
        await until_held(rig, "decode-0")
        async with lost(rig, "decode-0"):
            assert await tokens == expected_output(prompt, COUNT, sampling)
            completion = await generation
        assert completion.decode_worker == "decode-1"
        assert completion.usage.migrations == 1
        assert completion.usage.computed_tokens == 45
        # The prefill worker has kept the prompt's full blocks.
        assert 0 < completion.usage.recomputed_tokens <= 5 + steps + 1


@BOTH
async def test_the_same_replica_under_both_roles(
    tiny_model_dir: Path, sampling: SamplingParams
) -> None:
    async with a_rig(tiny_model_dir, prefill=0, decode=0, aggregated=2) as rig:
        hold(rig, "aggregated-0", 6)
        prompt = a_prompt(45)
        tokens = asyncio.ensure_future(tokens_of(rig.client.generate(prompt, sampling=sampling)))
        await until_held(rig, "aggregated-0")
        async with lost(rig, "aggregated-0"):
            assert await tokens == expected_output(prompt, COUNT, sampling)


@BOTH
async def test_twice_in_a_row(tiny_model_dir: Path, sampling: SamplingParams) -> None:
    async with a_rig(tiny_model_dir, decode=3) as rig:
        hold(rig, "decode-0", 5)
        hold(rig, "decode-1", 9)
        prompt = a_prompt(45)
        generation = rig.client.generate(prompt, sampling=sampling)
        tokens = asyncio.ensure_future(tokens_of(generation))
        await until_held(rig, "decode-0")
        async with lost(rig, "decode-0"):
            await until_held(rig, "decode-1")
            async with lost(rig, "decode-1"):
                assert await tokens == expected_output(prompt, COUNT, sampling)
        completion = await generation
        assert (completion.decode_worker, completion.usage.migrations) == ("decode-2", 2)


@BOTH
async def test_many_streams_of_one_worker_at_once(
    tiny_model_dir: Path, sampling: SamplingParams
) -> None:
    async with a_rig(tiny_model_dir, prefill=2, decode=2) as rig:
        hold(rig, "decode-0", 12)
        prompts = [a_prompt(9 + 7 * i, seed=i) for i in range(10)]
        streams = [
            asyncio.ensure_future(tokens_of(rig.client.generate(p, sampling=sampling)))
            for p in prompts
        ]
        await until_held(rig, "decode-0")
        async with lost(rig, "decode-0"):
            for prompt, stream in zip(prompts, streams, strict=True):
                assert await stream == expected_output(prompt, COUNT, sampling)
        assert (await rig.client.loads()).migrations > 0


@BOTH
@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
async def test_a_worker_that_dies_in_transfer(
    tiny_model_dir: Path, sampling: SamplingParams, victim: str
) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def first_is_slow(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        slow = not entered.is_set()
        async for frame in frames:
            entered.set()
            if slow:
                await gate.wait()
            yield frame

    async with a_rig(tiny_model_dir, prefill=2, decode=2, tap=first_is_slow) as rig:
        prompt = a_prompt(20)
        generation = rig.client.generate(prompt, sampling=sampling)
        chunks = aiter(generation)
        first = await anext(chunks)
        await entered.wait()
        async with lost(rig, victim):
            tokens = [*first.token_ids, *await tokens_of(generation)]
        gate.set()
        assert tokens == expected_output(prompt, COUNT, sampling)
        completion = await generation
        assert victim not in (completion.prefill_worker, completion.decode_worker)
        assert completion.usage.migrations == 1
        assert completion.timing.second is not None
        # The token after the first came from the prefill worker that took over.
        assert completion.timing.second.migration_ns == completion.timing.second.total_ns > 0


async def test_attempts_that_are_used_up_end_in_an_error_that_names_the_phase(
    tiny_model_dir: Path,
) -> None:
    config = a_config(router={"attempts_max": 2})
    async with a_rig(tiny_model_dir, decode=3, config=config) as rig:
        hold(rig, "decode-0", 5)
        hold(rig, "decode-1", 5)
        generation = rig.client.generate(a_prompt(20), sampling=GREEDY)
        tokens = asyncio.ensure_future(tokens_of(generation))
        await until_held(rig, "decode-0")
        async with lost(rig, "decode-0"):
            await until_held(rig, "decode-1")
            async with lost(rig, "decode-1"):
                with pytest.raises(
                    Unavailable, match=r"decode-1 is gone.*attempts made: 2"
                ) as caught:
                    await tokens
        assert caught.value.phase is Phase.DECODE
        assert caught.value.status.retriable


async def test_what_no_prefill_worker_can_hold_any_more_ends_in_a_retriable_error(
    tiny_model_dir: Path,
) -> None:
    async with a_rig(tiny_model_dir, decode=2, config=a_config(prefill={"kv_tokens": 64})) as rig:
        hold(rig, "decode-0", 31)
        tokens = asyncio.ensure_future(
            tokens_of(rig.client.generate(a_prompt(40), sampling=GREEDY))
        )
        await until_held(rig, "decode-0")
        async with lost(rig, "decode-0"):
            with pytest.raises(Unavailable, match="needs 9 KV blocks; one sequence can have 8"):
                await tokens


async def test_an_engine_that_fails_may_be_the_only_one(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, decode=3) as rig:
        hold(rig, "decode-0", 5)
        prompt = a_prompt(20)
        generation = rig.client.generate(prompt, sampling=GREEDY)
        tokens = asyncio.ensure_future(tokens_of(generation))
        await until_held(rig, "decode-0")
        rig.engine("decode-0").fail_next = RuntimeError("out of memory")
        rig.engine("decode-0").gate.set()
        assert await tokens == expected_output(prompt, COUNT)
        assert (await generation).usage.migrations == 1


async def test_a_defect_that_shows_itself_twice_is_the_request_s(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, decode=3) as rig:
        for worker_id in ("decode-0", "decode-1"):
            rig.engine(worker_id).fail_next = RuntimeError("out of memory")
        with pytest.raises(InternalError, match="out of memory") as caught:
            await rig.client.generate(a_prompt(20), sampling=GREEDY)
        assert caught.value.phase is Phase.DECODE
        assert not rig.engine("decode-2").steps


@pytest.mark.parametrize("end", ["cancel", "deadline", "new worker"])
async def test_a_request_that_waits_for_its_move(tiny_model_dir: Path, end: str) -> None:
    async with a_rig(tiny_model_dir) as rig:
        hold(rig, "decode-0", 5)
        prompt = a_prompt(20)
        timeout_s = 3.0 if end == "deadline" else None
        generation = rig.client.generate(prompt, sampling=GREEDY, timeout_s=timeout_s)
        tokens = asyncio.ensure_future(tokens_of(generation))
        await until_held(rig, "decode-0")
        async with lost(rig, "decode-0"):
            async with asyncio.timeout(20):
                while (await rig.client.loads()).waiting == 0:  # noqa: ASYNC110 - see Rig.until
                    await asyncio.sleep(0.005)
            if end == "cancel":
                generation.cancel()
                with pytest.raises(Cancelled):
                    await tokens
            elif end == "deadline":
                with pytest.raises(DeadlineExceeded) as caught:
                    await tokens
                assert caught.value.phase is Phase.QUEUE
            else:
                await rig.start("decode-1", Role.DECODE)
                assert await tokens == expected_output(prompt, COUNT)
        loads = await rig.client.loads()
        assert (loads.waiting, loads.active) == (0, 0)


async def test_a_conversation_goes_on_where_its_last_turn_was_moved(
    tiny_model_dir: Path,
) -> None:
    valkey = EmbeddedValkey(64 << 20)
    async with a_stored_rig(tiny_model_dir, valkey) as rig:
        await rig.start("decode-1", Role.DECODE)
        await rig.until_up("decode-1")
        hold(rig, "decode-0", 9)
        prompt, more = a_prompt(60), a_prompt(21, seed=3)
        generation = rig.client.generate(prompt, session="s", sampling=GREEDY)
        tokens = asyncio.ensure_future(tokens_of(generation))
        await until_held(rig, "decode-0")
        async with lost(rig, "decode-0"):
            first = await tokens
        assert first == expected_output(prompt, COUNT)
        await rig.until(lambda: spilled(rig) == 1)
        await rig.start("decode-2", Role.DECODE)
        await rig.until_up("decode-2")
        await rig.stop("decode-1")
        await rig.start("prefill-1", Role.PREFILL)
        await rig.until_up("prefill-1")
        await rig.stop("prefill-0")
        second = await rig.client.generate(more, session="s", must_exist=True, sampling=GREEDY)
        whole = [*prompt, *first, *more]
        assert list(second.token_ids) == expected_output(whole, COUNT)
        # 60 + 40 - 1 tokens had KV on the worker that ended the turn: 12 full blocks of 8 tokens.
        assert second.usage.loaded_tokens == 96
