"""Parameter counts against real models: tiny ones, built by transformers from the same config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from planner.hf_config import shape_of
from planner.model_shape import ModelShape

_COMMON = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "qwen3_moe": {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16,
        "decoder_sparse_step": 2, "mlp_only_layers": [3],
    },
    "deepseek_v3": {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2,
        "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
        "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
        "v_head_dim": 6, "num_key_value_heads": 4,
    },
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8,
    },
    "opt": {"ffn_dim": 48, "tie_word_embeddings": True, "word_embed_proj_dim": 32,
            "num_key_value_heads": 4},
}  # fmt: skip
# Norms, biases, sinks and the scores that balance a router: one dimension a layer, by name or rank.
_LEFT_OUT = ("norm", "bias", "sinks")


def _counts(kind: str) -> tuple[ModelShape, dict[str, int]]:
    config = CONFIG_MAPPING[kind](**{**_COMMON, **CONFIGS[kind]})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counts = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not any(word in name for word in _LEFT_OUT)
    }
    return shape_of(kind, config.to_dict()), counts


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_all_parameters_are_counted(kind: str) -> None:
    shape, counts = _counts(kind)
    assert shape.total_params == sum(counts.values())


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_each_part_is_counted_as_it_is(kind: str) -> None:
    """Attention, networks, experts and router of all layers, each by itself."""
    shape, counts = _counts(kind)

    def of(*words: str) -> int:
        return sum(n for name, n in counts.items() if any(word in name for word in words))

    assert shape.layers * shape.attention_params == of("self_attn.")
    experts = of(".experts.")
    routers = of("mlp.gate.weight", "block_sparse_moe.gate.weight", "mlp.router.weight")
    held = 0 if shape.experts is None else shape.experts.count
    assert shape.sparse_layers * held * shape.expert_params == experts
    assert shape.sparse_layers * shape.router_params == routers
    assert shape.sparse_layers * shape.shared_params == of("shared_expert")
    dense = (shape.layers - shape.sparse_layers) * shape.dense_ffn_params
    layers = shape.body_params - shape.layers * shape.attention_params
    assert dense == layers - experts - routers - of("shared_expert")
    assert shape.embedding_params == of("embed", "lm_head")


def test_windows_are_those_of_the_model() -> None:
    config = CONFIG_MAPPING["gpt_oss"](**{**_COMMON, **CONFIGS["gpt_oss"]})
    shape = shape_of("gpt_oss", config.to_dict())
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    assert shape.windows == tuple(8 if slides else None for slides in sliding)
    assert any(sliding)
    bare = {k: v for k, v in config.to_dict().items() if k != "layer_types"}
    assert shape_of("gpt_oss", bare).windows == shape.windows
