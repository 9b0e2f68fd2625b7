"""Real engines, in float32, of which one dies in mid-stream: tokens, log-probabilities and endings
are those of an undisturbed run, whatever the sampling."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from eastwest.answers import Completion
from eastwest.layout import ParallelLayout
from eastwest.messages import ModelInfo
from eastwest.ports import Engine, KVMemory, StepProgress, StepRow
from eastwest.types import FinishReason, Role, SampledToken, SamplingParams
from tests.checkpoints import tiny_checkpoint
from tests.integration.test_oracle import engines
from tests.integration.test_serving import a_prompt
from tests.rig import Rig, a_config, a_rig

COUNT = 30
SAMPLED = SamplingParams(
    temperature=0.8, top_p=0.9, top_k=50, seed=11, max_tokens=COUNT, ignore_eos=True, logprobs=2,
    repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.1,
)  # fmt: skip
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True, logprobs=2),
    "sampled": SAMPLED,
    # Nearly every token would end it, and none may before the eighteenth.
    "min_tokens": SamplingParams(
        seed=5, max_tokens=COUNT, min_tokens=18, stop_token_ids=tuple(range(500))
    ),
    "stop_string": SamplingParams(seed=7, max_tokens=COUNT, ignore_eos=True, stop=("e", "t")),
}


class Held:
    """An engine that is stuck after `free_steps` steps, until `gate` is set."""

    def __init__(self, engine: Engine, free_steps: int) -> None:
        self._engine = engine
        self._free_steps = free_steps
        self.held, self.gate = threading.Event(), threading.Event()

    @property
    def model(self) -> ModelInfo:
        return self._engine.model

    @property
    def layout(self) -> ParallelLayout:
        return self._engine.layout

    @property
    def rank(self) -> int:
        return self._engine.rank

    @property
    def kv(self) -> KVMemory:
        return self._engine.kv

    @property
    def expert_tokens(self) -> tuple[int, ...]:
        return self._engine.expert_tokens

    def step(
        self, rows: Sequence[StepRow], progress: StepProgress | None = None
    ) -> list[SampledToken | None]:
        if self._free_steps == 0:
            self.held.set()
            self.gate.wait()
        else:
            self._free_steps -= 1
        return self._engine.step(rows, progress)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module", params=["llama", "qwen3_moe", "deepseek_v2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(f"migration-{request.param}")
    return tiny_checkpoint(request.param, directory, vocab_size=512)


async def undisturbed(
    model_dir: Path, make: Callable[[Role], Sequence[Engine]], sampling: SamplingParams
) -> Completion:
    async with a_rig(model_dir, config=a_config(), make_engines=make) as rig:
        return await rig.client.generate(a_prompt(40), sampling=sampling)


async def disturbed(rig: Rig, engine: Held, sampling: SamplingParams) -> Completion:
    """A stream whose decode worker dies with `engine` in mid-step."""
    running = asyncio.ensure_future(rig.client.generate(a_prompt(40), sampling=sampling).result())
    await asyncio.to_thread(engine.held.wait)
    dying = asyncio.ensure_future(rig.kill("decode-0"))
    completion = await running
    engine.gate.set()
    await dying
    assert completion.usage.migrations == 1
    assert completion.decode_worker == "decode-1"
    return completion


@pytest.mark.parametrize(
    ("name", "steps"),
    # Behind 18 tokens the next may be an ending one, behind 29 it is the last.
    [
        *((name, steps) for name in SAMPLINGS for steps in (0, 6)),
        ("min_tokens", 17),
        ("greedy", 28),
    ],
)
async def test_the_rest_of_a_stream_is_what_it_would_have_been(
    tiny_model_dir: Path, checkpoint: Path, name: str, steps: int
) -> None:
    config, sampling = a_config(), SAMPLINGS[name]
    make = engines(checkpoint, config)
    expected = await undisturbed(tiny_model_dir, make, sampling)
    victims: list[Held] = []

    def make_one_victim(role: Role) -> list[Engine]:
        [engine] = make(role)
        if role is not Role.DECODE or victims:
            return [engine]
        victims.append(Held(engine, steps))
        return [*victims]

    async with a_rig(tiny_model_dir, decode=2, config=config, make_engines=make_one_victim) as rig:
        completion = await disturbed(rig, victims[0], sampling)
    assert completion.token_ids == expected.token_ids
    assert completion.text == expected.text
    assert completion.finish_reason is expected.finish_reason
    assert completion.matched_stop == expected.matched_stop
    assert len(completion.logprobs) == len(expected.logprobs)
    for ours, theirs in zip(completion.logprobs, expected.logprobs, strict=True):
        assert ours.token == theirs.token
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    if name == "min_tokens":
        assert completion.finish_reason is FinishReason.STOP
        assert len(completion.token_ids) >= 18
