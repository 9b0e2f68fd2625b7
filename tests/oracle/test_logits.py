"""Logits agree with transformers, position by position, within float tolerance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from eastwest.ports import SampleInput, StepRow
from eastwest.types import LOGPROBS_MAX, SamplingParams
from tests.checkpoints import ARCHITECTURES, YARN, tiny_checkpoint
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
    "qwen3 with yarn": ("qwen3", {"rope_parameters": YARN}),
    "mixtral without a window": ("mixtral", {"sliding_window": None, "num_experts_per_tok": 1}),
    "qwen3_moe with every second layer dense": (
        "qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [], "norm_topk_prob": False}
    ),
    "qwen3_moe with biases and a window": (
        "qwen3_moe", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 21}
    ),
    "deepseek_v2 greedy with a query latent, yarn and biases": (
        "deepseek_v2", {"topk_method": "greedy", "q_lora_rank": 20, "rope_parameters": YARN,
                        "first_k_dense_replace": 0, "attention_bias": True}
    ),
    "deepseek_v2 with another scale of yarn": (
        "deepseek_v2", {"rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}
    ),
    "deepseek_v3 without a query latent or groups": (
        "deepseek_v3", {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 3}
    ),
    "deepseek_v3 all dense, halves not interleaved, biases": (
        "deepseek_v3", {"first_k_dense_replace": 3, "rope_interleave": False,
                        "attention_bias": True}
    ),
    "deepseek_v2 with linear rope that scales scores": (
        "deepseek_v2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4,
                                            "factor": 4.0, "mscale_all_dim": 1.0}}
    ),
    "deepseek_v3 with llama3 rope that scales scores": (
        "deepseek_v3", {"rope_parameters": {**LLAMA3, "mscale_all_dim": 1.0}}
    ),
    "deepseek_v3 not renormalised": (
        "deepseek_v3", {"norm_topk_prob": False, "routed_scaling_factor": 0.7,
                        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4,
                                            "factor": 2.0}}
    ),
}  # fmt: skip
PARAMS = SamplingParams(temperature=0.0, logprobs=LOGPROBS_MAX)


def largest_difference(
    directory: Path,
    dtype: str,
    oracle: Oracle,
    quantization: str = "none",
    kv_dtype: str = "auto",
) -> float:
    """Between the most likely log-probabilities of every third position of a prompt."""
    engine, prompt = engine_of(directory, dtype, quantization, kv_dtype), a_prompt(90)
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


# The most that log-probabilities may move, by KV dtype. Where there are experts, a router that is
# nearly undecided may choose another one, and then no bound holds; so these have none.
KV_TOLERANCE = {"bfloat16": 0.01, "int8": 0.03, "float8_e4m3": 0.1}
KV_VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {}, "deepseek_v3": {"first_k_dense_replace": 3},
}  # fmt: skip


@pytest.mark.parametrize("kv_dtype", KV_TOLERANCE)
@pytest.mark.parametrize("architecture", KV_VARIANTS)
def test_narrower_kv_stays_near_the_exact_one(
    architecture: str, kv_dtype: str, tmp_path: Path
) -> None:
    overrides = KV_VARIANTS[architecture]
    directory = tiny_checkpoint(architecture, tmp_path, initializer_range=0.05, **overrides)
    difference = largest_difference(directory, "float32", Oracle(directory), kv_dtype=kv_dtype)
    assert 1e-5 < difference < KV_TOLERANCE[kv_dtype]


@pytest.mark.parametrize("architecture", ["qwen2", "deepseek_v2"])
def test_wider_kv_than_the_activations_changes_nothing(architecture: str, tmp_path: Path) -> None:
    directory = tiny_checkpoint(architecture, tmp_path)
    oracle = Oracle(directory)
    plain = largest_difference(directory, "bfloat16", oracle)
    assert largest_difference(directory, "bfloat16", oracle, kv_dtype="float32") == plain
