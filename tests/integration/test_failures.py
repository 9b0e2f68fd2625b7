"""Cancels, deadlines, damaged frames and lost workers: one typed ending, nothing leaked, and the
next request is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eastwest.client import AsyncGeneration
from eastwest.errors import Cancelled, DeadlineExceeded, Phase, Unavailable
from eastwest.messages import Abort, Reserve
from eastwest.testing.engine import expected_output
from eastwest.types import Role, SamplingParams
from runtime.rank_group import RankGroup
from tests.integration.test_serving import a_prompt
from tests.rig import Rig, a_config, a_rig

WAIT_S = 60.0


@dataclass
class Held:
    """A rig whose next request gets stuck in one phase until `release` is called."""

    rig: Rig
    arrived: Callable[[], Awaitable[object]]
    release: Callable[[], None]


@asynccontextmanager
async def held_in(phase: Phase, model_dir: Path, *, http: bool = False) -> AsyncIterator[Held]:
    """Rigs in which a request comes as far as `phase` and no further. http: serve HTTP, too."""
    router: dict[str, Any] = {"http_port": 0} if http else {}
    transfer_entered, transfer_gate = asyncio.Event(), asyncio.Event()

    async def slow_tap(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            transfer_entered.set()
            await transfer_gate.wait()
            yield frame

    if phase is Phase.TRANSFER:
        async with a_rig(model_dir, tap=slow_tap, config=a_config(router=router)) as rig:
            yield Held(rig, transfer_entered.wait, transfer_gate.set)
            transfer_gate.set()
    elif phase is Phase.RESERVATION:
        reserved, confirmed = asyncio.Event(), asyncio.Event()
        settled = RankGroup.settled

        async def held(group: RankGroup) -> None:
            reserved.set()
            await confirmed.wait()
            await settled(group)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RankGroup, "settled", held)
            async with a_rig(model_dir, config=a_config(router=router)) as rig:
                yield Held(rig, reserved.wait, confirmed.set)
                confirmed.set()
    elif phase is Phase.QUEUE:
        config = a_config(router={**router, "active_max": 1})
        async with a_rig(model_dir, config=config) as rig:
            engine = rig.engine("prefill-0")
            engine.gate.clear()
            first = asyncio.ensure_future(rig.client.generate(a_prompt(9), max_tokens=2).result())
            await asyncio.to_thread(engine.held.wait)

            async def queued() -> None:
                async with asyncio.timeout(WAIT_S):
                    while (await rig.client.loads()).waiting == 0:  # noqa: ASYNC110 - see Rig.until
                        await asyncio.sleep(0.005)

            yield Held(rig, queued, engine.gate.set)
            engine.gate.set()
            await first
    else:
        worker_id = "prefill-0" if phase is Phase.PREFILL else "decode-0"
        async with a_rig(model_dir, config=a_config(router=router)) as rig:
            engine = rig.engine(worker_id)
            # The router knows of the decode phase from its first step on.
            engine.free_steps = 0 if phase is Phase.PREFILL else 3
            engine.gate.clear()
            yield Held(rig, lambda: asyncio.to_thread(engine.held.wait), engine.gate.set)
            engine.gate.set()


PHASES = [Phase.QUEUE, Phase.RESERVATION, Phase.PREFILL, Phase.TRANSFER, Phase.DECODE]


async def served(rig: Rig) -> None:
    """A fresh request is served rightly."""
    prompt = a_prompt(50, seed=9)
    completion = await rig.client.generate(prompt, temperature=0.0, max_tokens=6)
    assert list(completion.token_ids) == expected_output(prompt, 6)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_cancel_in_any_phase_frees_everything(tiny_model_dir: Path, phase: Phase) -> None:
    async with held_in(phase, tiny_model_dir) as held:
        generation = held.rig.client.generate(a_prompt(40), temperature=0.0, max_tokens=40)
        waiting = asyncio.ensure_future(generation.result())
        await held.arrived()
        generation.cancel()
        with pytest.raises(Cancelled):
            await waiting
        held.release()
        await held.rig.settle()
        held.rig.assert_clean()
        await served(held.rig)


@pytest.mark.parametrize("phase", PHASES)
async def test_an_abort_in_any_phase_ends_the_stream(tiny_model_dir: Path, phase: Phase) -> None:
    async with held_in(phase, tiny_model_dir) as held:
        generation = held.rig.client.generate(a_prompt(40), max_tokens=40, request_id="mine")
        waiting = asyncio.ensure_future(generation.result())
        await held.arrived()
        assert await held.rig.client.abort("mine")
        with pytest.raises(Cancelled):
            await waiting
        assert not await held.rig.client.abort("mine")
        held.release()
        await held.rig.settle()
        await served(held.rig)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_deadline_names_the_phase_it_passed_in(tiny_model_dir: Path, phase: Phase) -> None:
    async with held_in(phase, tiny_model_dir) as held:
        # Longer ones for machines that need more time to get as far as the phase.
        for timeout_s in (1.0, 5.0, 25.0):
            arrived = asyncio.ensure_future(held.arrived())
            generation = held.rig.client.generate(a_prompt(40), max_tokens=40, timeout_s=timeout_s)
            with pytest.raises(DeadlineExceeded) as caught:
                await generation
            if arrived.done():
                break
        assert caught.value.phase is phase
        held.release()
        await arrived
        await held.rig.settle()
        await served(held.rig)


async def read_one(generation: AsyncGeneration) -> None:
    await anext(aiter(generation))


async def test_a_client_that_disconnects_stops_the_work(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        async with rig.client.generate(a_prompt(40), max_tokens=800, ignore_eos=True) as stream:
            await read_one(stream)
        await rig.settle()
        steps = len(rig.engine("decode-0").steps)
        await served(rig)
        # Six tokens of the next request: the first comes from prefill.
        assert len(rig.engine("decode-0").steps) - steps == 5


async def test_a_corrupted_frame_is_sent_again(tiny_model_dir: Path) -> None:
    damaged = 0

    async def tap(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        nonlocal damaged
        async for frame in frames:
            if damaged == 0:
                damaged += 1
                frame = frame[:-3] + bytes([frame[-3] ^ 0x40]) + frame[-2:]
            yield frame

    async with a_rig(tiny_model_dir, tap=tap) as rig:
        await served(rig)
        assert damaged == 1


async def test_duplicated_and_reordered_frames_do_no_harm(tiny_model_dir: Path) -> None:
    async def tap(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        seen = [frame async for frame in frames]
        for frame in [*reversed(seen), *seen]:
            yield frame

    async with a_rig(tiny_model_dir, tap=tap) as rig:
        await served(rig)


async def test_a_lost_frame_is_missed_at_commit_and_sent_again(tiny_model_dir: Path) -> None:
    lost = 0

    async def tap(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        nonlocal lost
        async for frame in frames:
            if lost == 0:
                lost += 1
                continue
            yield frame

    async with a_rig(tiny_model_dir, tap=tap) as rig:
        await served(rig)
        assert lost == 1


async def test_frames_that_never_arrive_intact_end_in_a_typed_error(tiny_model_dir: Path) -> None:
    async def tap(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            yield frame[:-1] + bytes([frame[-1] ^ 1])

    async with a_rig(tiny_model_dir, tap=tap) as rig:
        with pytest.raises(Unavailable):
            await rig.client.generate(a_prompt(40), max_tokens=4)


async def test_a_prefill_worker_that_dies_is_replaced_by_another(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, prefill=2) as rig:
        engines = [rig.engine("prefill-0"), rig.engine("prefill-1")]
        for engine in engines:
            engine.gate.clear()
        prompt = a_prompt(90)
        waiting = asyncio.ensure_future(
            rig.client.generate(prompt, temperature=0.0, max_tokens=8).result()
        )
        await rig.until(lambda: any(e.held.is_set() for e in engines))
        hit = 0 if engines[0].held.is_set() else 1
        engines[1 - hit].gate.set()
        stopping = asyncio.ensure_future(rig.stop(f"prefill-{hit}"))
        completion = await waiting
        engines[hit].gate.set()
        await stopping
        assert list(completion.token_ids) == expected_output(prompt, 8)
        assert completion.prefill_worker == f"prefill-{1 - hit}"


async def test_the_last_attempt_that_is_lost_in_mid_decode_ends_its_stream_typed(
    tiny_model_dir: Path,
) -> None:
    config = a_config(router={"attempts_max": 1})
    async with a_rig(tiny_model_dir, decode=1, config=config) as rig:
        generation = rig.client.generate(a_prompt(20), max_tokens=900, ignore_eos=True)
        await read_one(generation)
        await rig.stop("decode-0")
        with pytest.raises(Unavailable) as caught:
            await generation
        assert caught.value.status.retriable
        await rig.start("decode-1", Role.DECODE)
        await rig.until_up("decode-1")
        await served(rig)


async def test_a_router_that_vanishes_frees_what_it_owned(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        engine = rig.engine("decode-0")
        generation = rig.client.generate(a_prompt(20), max_tokens=900, ignore_eos=True)
        await read_one(generation)
        await rig.router.stop()
        with pytest.raises(Unavailable):
            await generation
        await rig.settle()
        assert not engine.closed


async def test_a_request_that_leaves_while_it_waits_for_room_leaves_nothing(
    tiny_model_dir: Path,
) -> None:
    config = a_config(decode={"kv_tokens": 128}, router={"heartbeat_s": 3.0})
    async with a_rig(tiny_model_dir, config=config) as rig:
        replica = rig.replicas["decode-0"]
        engine = rig.engine("decode-0")
        engine.gate.clear()
        first = asyncio.ensure_future(
            rig.client.generate(a_prompt(60), temperature=0.0, max_tokens=20).result()
        )
        await asyncio.to_thread(engine.held.wait)
        prompt, greedy = tuple(a_prompt(60, seed=1)), SamplingParams(temperature=0.0)
        source = rig.replicas["prefill-0"].info().source()
        reserve = Reserve("waits", "", "", prompt, greedy, 20, source, 60.0)
        replica.handle("another router", reserve)
        await rig.until(lambda: replica.load().waiting == 1)
        replica.handle("another router", Abort("waits"))
        await rig.until(lambda: replica.load().waiting == 0)
        assert replica.audit().findings == ()
        engine.gate.set()
        await first
