"""Logits agree with transformers, position by position, within float tolerance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from eastwest.ports import SampleInput, StepRow
from eastwest.types import LOGPROBS_MAX, SamplingParams
from tests.checkpoints import ARCHITECTURES, tiny_checkpoint
from tests.oracle.harness import Oracle, a_prompt, blocks_at, engine_of

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ARCHITECTURES},
    "llama with every bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama with linear rope": (
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}
    ),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen3 with a window": (
        "qwen3", {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 0}
    ),
}  # fmt: skip
PARAMS = SamplingParams(temperature=0.0, logprobs=LOGPROBS_MAX)


def largest_difference(
    directory: Path, dtype: str, oracle: Oracle, quantization: str = "none"
) -> float:
    """Between the most likely log-probabilities of every third position of a prompt."""
    engine, prompt = engine_of(directory, dtype, quantization), a_prompt(90)
    truth = oracle.logits(prompt).log_softmax(-1)
    worst = 0.0
    for end in range(1, len(prompt) + 1, 3):
        row = StepRow(prompt[:end], 0, blocks_at(5, end), SampleInput(PARAMS, prompt[:end], ()))
        [sampled] = engine.step([row])
        assert sampled is not None
        assert len(sampled.top) == LOGPROBS_MAX
        for top in sampled.top:
            worst = max(worst, abs(top.logprob - float(truth[end - 1, top.token])))
    return worst


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree_in_float32(variant: str, tmp_path: Path) -> None:
    architecture, overrides = VARIANTS[variant]
    directory = tiny_checkpoint(architecture, tmp_path, **overrides)
    assert largest_difference(directory, "float32", Oracle(directory)) < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_as_near_to_float32_as_the_oracles_own_bfloat16(
    architecture: str, tmp_path: Path
) -> None:
    directory = tiny_checkpoint(architecture, tmp_path)
    exact = Oracle(directory)
    prompt = a_prompt(90)
    rounded = Oracle(directory, torch.bfloat16).logits(prompt).log_softmax(-1)
    theirs = float((rounded - exact.logits(prompt).log_softmax(-1)).abs().max())
    ours = largest_difference(directory, "bfloat16", exact)
    assert ours < 1.5 * theirs
    assert not math.isclose(ours, 0.0, abs_tol=1e-4), "bfloat16 rounds"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_weights_stay_near_the_exact_ones(dtype: str, tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama", tmp_path, initializer_range=0.05)
    assert largest_difference(directory, dtype, Oracle(directory), "int8") < 0.15
