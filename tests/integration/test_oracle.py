"""Real engines in the whole pipeline, for each architecture, in float32: what comes out of prefill,
transfer and decode is what one aggregated worker gives, and what transformers gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from eastwest.config import Config, ModelConfig
from eastwest.ports import Engine
from eastwest.types import Role, SamplingParams
from engine.torch_engine import load_engine
from tests.checkpoints import ARCHITECTURES, tiny_checkpoint
from tests.integration.test_serving import a_prompt
from tests.rig import Rig, a_config, a_rig

# One token; around a block of 8, a chunk of 32 and the batch budget; several chunks.
LENGTHS = (1, 7, 8, 9, 31, 32, 33, 64, 100)
COUNT = 10


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(f"oracle-{request.param}")
    return tiny_checkpoint(request.param, directory, vocab_size=512)


def engines(directory: Path, config: Config) -> Callable[[Role], list[Engine]]:
    model = ModelConfig(source=str(directory), dtype="float32")
    return lambda _: [load_engine(directory, model, config.decode, config.kv)]


def pools(
    model_dir: Path, config: Config, make_engines: Callable[[Role], list[Engine]], *, split: bool
) -> AbstractAsyncContextManager[Rig]:
    """One prefill and one decode worker, or one aggregated worker."""
    counts = (1, 1, 0) if split else (0, 0, 1)
    prefill, decode, aggregated = counts
    return a_rig(
        model_dir,
        prefill=prefill,
        decode=decode,
        aggregated=aggregated,
        config=config,
        make_engines=make_engines,
    )


def greedy(directory: Path, prompt: list[int]) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=COUNT,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


async def test_disaggregated_aggregated_and_transformers_agree(
    tiny_model_dir: Path, checkpoint: Path
) -> None:
    config = a_config()
    make_engines = engines(checkpoint, config)
    sampling = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
    prompts = [a_prompt(length, seed=length) for length in LENGTHS]

    async def outputs(*, split: bool) -> list[list[int]]:
        async with pools(tiny_model_dir, config, make_engines, split=split) as rig:
            alone = [await rig.client.generate(p, sampling=sampling) for p in prompts[:3]]
            together = await asyncio.gather(
                *(rig.client.generate(p, sampling=sampling).result() for p in prompts[3:])
            )
            return [list(c.token_ids) for c in [*alone, *together]]

    split = await outputs(split=True)
    merged = await outputs(split=False)
    assert split == merged
    assert split == [greedy(checkpoint, prompt) for prompt in prompts]


async def test_a_seeded_sample_does_not_depend_on_where_it_runs(
    tiny_model_dir: Path, checkpoint: Path
) -> None:
    config = a_config()
    make_engines = engines(checkpoint, config)
    sampling = SamplingParams(
        temperature=0.8, top_p=0.9, top_k=50, seed=11, max_tokens=COUNT, ignore_eos=True,
        repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.1,
    )  # fmt: skip
    results = []
    for split in (True, False):
        async with pools(tiny_model_dir, config, make_engines, split=split) as rig:
            completion = await rig.client.generate(a_prompt(40), sampling=sampling)
            results.append(completion.token_ids)
    assert results[0] == results[1]
