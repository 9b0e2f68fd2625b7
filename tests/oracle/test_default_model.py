"""The default model, real weights and real text: the engine and transformers agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from eastwest.ports import SampleInput, StepRow
from eastwest.types import LOGPROBS_MAX, SamplingParams
from tests.models import default_model_dir
from tests.oracle.harness import Oracle, Running, blocks_at, engine_of, generate

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def directory() -> Path:
    return default_model_dir()


@pytest.fixture(scope="module")
def prompt(directory: Path) -> list[int]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(TEXT).ids
    return ids


def test_greedy_tokens_and_logits_are_those_of_transformers(
    directory: Path, prompt: list[int]
) -> None:
    engine, oracle = engine_of(directory), Oracle(directory)
    for length in (1, len(prompt), 150):
        tokens = (prompt * 40)[:length]
        running = Running(tokens, blocks_at(0, length + 6))
        assert generate(engine, running, 6, chunk=64) == oracle.generate(tokens, 6)
    params = SamplingParams(temperature=0.0, logprobs=LOGPROBS_MAX)
    [sampled] = engine.step(
        [StepRow(prompt, 0, blocks_at(100, 9), SampleInput(params, prompt, ()))]
    )
    assert sampled is not None
    truth = oracle.logits(prompt)[-1].log_softmax(-1)
    ours = torch.tensor([top.logprob for top in sampled.top])
    torch.testing.assert_close(ours, truth[[top.token for top in sampled.top]], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("dtype", "quantization"), [("bfloat16", "none"), ("bfloat16", "int8")])
def test_lower_precisions_still_know_the_answer(
    dtype: str, quantization: str, directory: Path, prompt: list[int]
) -> None:
    engine = engine_of(directory, dtype, quantization)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    output = generate(engine, Running(prompt, blocks_at(0, 20)), 4)
    assert "Paris" in tokenizer.decode(output)
