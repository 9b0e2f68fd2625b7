"""The planner's rule for layouts is the engine's, and candidates obey it and the memory."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from engine.architecture import ArchitectureConfig
from engine.rank_slice import check_layout
from planner.hardware import find_device
from planner.hf_config import shape_of
from planner.layouts import TP_MAX, candidates, fits_model
from planner.memory import sequences_that_fit
from planner.models import find_model
from planner.precision import Precision

_BASE = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 5, "vocab_size": 100,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 8,
    "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "n_routed_experts": 12, "num_experts_per_tok": 2, "num_key_value_heads": 12,
    "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "norm_topk_prob": True, "routed_scaling_factor": 1.0, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "rope_interleave": True,
}  # fmt: skip
_QWEN3_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 36}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaForCausalLM", {}),
    "llama, ffn that few divide": ("llama", "LlamaForCausalLM", {"intermediate_size": 50}),
    "llama, as many KV heads": ("llama", "LlamaForCausalLM", {"num_key_value_heads": 12}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", {"num_key_value_heads": 2}),
    "mixtral": (
        "mixtral", "MixtralForCausalLM", {"num_local_experts": 6, "num_experts_per_tok": 2},
    ),
    "qwen3-moe": ("qwen3_moe", "Qwen3MoeForCausalLM", {**_QWEN3_MOE, "norm_topk_prob": True}),
    "qwen3-moe, some dense": (
        "qwen3_moe", "Qwen3MoeForCausalLM",
        {**_QWEN3_MOE, "mlp_only_layers": [0], "intermediate_size": 64, "norm_topk_prob": True},
    ),
    "deepseek-v3": ("deepseek_v3", "DeepseekV3ForCausalLM", _LATENT),
    "deepseek-v3, all sparse": (
        "deepseek_v3", "DeepseekV3ForCausalLM",
        {**_LATENT, "first_k_dense_replace": 0, "intermediate_size": 50, "n_shared_experts": 2},
    ),
}  # fmt: skip
SIZES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24)


def _fits_engine(config: ArchitectureConfig, layout: ParallelLayout) -> bool:
    try:
        check_layout(config, layout)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_planner_and_the_engine_allow_the_same_layouts(name: str) -> None:
    kind, architecture, changed = MODELS[name]
    fields = {**_BASE, "model_type": kind, "architectures": [architecture], **changed}
    config, shape = ArchitectureConfig.from_hf(fields), shape_of(name, fields)
    assert (shape.heads, shape.kv_heads) == (config.num_heads, config.num_kv_heads)
    fitting = 0
    for tp, pp, ep, dp in product(SIZES, (1, 2, 5, 6), SIZES, (1, 2, 3, 4, 6)):
        layout = ParallelLayout(tp=tp, pp=pp, ep=ep, dp=dp)
        assert fits_model(shape, layout) == _fits_engine(config, layout), layout
        fitting += fits_model(shape, layout)
    assert fitting > 1


@pytest.mark.parametrize(
    ("model", "device", "devices"),
    [("llama-3.1-70b", "h100-sxm", 32), ("deepseek-v3", "gb200-nvl72", 72),
     ("opt-13b", "tpu-v5e", 9), ("gpt-oss-120b", "h100-sxm", 16),
     ("qwen3-235b-a22b", "h200-sxm", 24)],
)  # fmt: skip
def test_candidates_fit_model_memory_and_domain(model: str, device: str, devices: int) -> None:
    shape, accelerator = find_model(model), find_device(device)
    precision = Precision.named(shape.weights)
    found = list(candidates(shape, precision, accelerator, devices, 2000))
    assert found
    assert len(found) == len(set(found))
    for layout in found:
        assert fits_model(shape, layout)
        assert layout.world_size <= devices
        assert layout.tp <= min(accelerator.scale_up.domain, TP_MAX)
        assert sequences_that_fit(shape, layout, precision, accelerator, 2000) >= layout.dp
        assert layout.ep == 1 or shape.experts is not None


def test_all_that_is_tried_and_fits_is_there() -> None:
    shape, device = find_model("llama-3.1-8b"), find_device("h100-sxm")
    found = set(candidates(shape, Precision.named("bf16"), device, 16, 2000))
    assert found == {
        ParallelLayout(tp=tp, pp=pp)
        for tp in (1, 2, 4, 8)
        for pp in (1, 2, 3, 4, 6, 8)
        if tp * pp <= 16
    }
