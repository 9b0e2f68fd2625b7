"""Reading config.json: what is understood, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eastwest.errors import ModelError
from engine.architecture import ArchitectureConfig
from engine.checkpoint import open_checkpoint
from tests.checkpoints import ARCHITECTURES, EXPERTS, tiny_checkpoint


def a_config(**overrides: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
    }
    return {**fields, **overrides}


def read(**overrides: Any) -> ArchitectureConfig:
    return ArchitectureConfig.from_hf(a_config(**overrides))


def test_sizes_follow_from_the_fields() -> None:
    config = read()
    assert (config.head_dim, config.group) == (8, 4)
    assert config.windows == (None,) * 4
    assert config.kv_spec("bfloat16").bytes_per_token == 4 * 2 * 2 * 8 * 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_transformers_writes_is_understood(architecture: str, tmp_path: Path) -> None:
    directory = tiny_checkpoint(
        architecture,
        tmp_path,
        rope_parameters={"rope_type": "default", "rope_theta": 7777.0},
    )
    config = ArchitectureConfig.from_hf(open_checkpoint(directory).config)
    assert config.rope_theta == 7777.0
    assert config.qkv_bias == (architecture == "qwen2")
    assert config.qk_norm == architecture.startswith("qwen3")
    assert (config.moe is not None) == (architecture in EXPERTS)
    assert (config.latent is not None) == architecture.startswith("deepseek")


def test_both_spellings_of_rope_mean_the_same() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 128}  # fmt: skip
    old = read(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **llama3})
    older = read(rope_theta=5e5, rope_scaling={"type": "llama3", **llama3})
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3})
    assert old == older == new
    assert new.rope.factor == 8.0
    assert read(rope_theta=5e5, rope_scaling=None).rope_theta == 5e5


def test_windows_apply_where_each_architecture_says() -> None:
    mistral = {"architectures": ["MistralForCausalLM"]}
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32}
    assert read(**mistral, sliding_window=32).windows == (32,) * 4
    assert read(**mistral, sliding_window=None).windows == (None,) * 4
    assert read(**qwen).windows == (None,) * 4
    switched = read(**qwen, use_sliding_window=True, max_window_layers=3)
    assert switched.windows == (None, None, None, 32)
    types = ["sliding_attention", "full_attention"] * 2
    named = read(**qwen, use_sliding_window=True, layer_types=types)
    assert named.windows == (32, None, 32, None)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported; allowed: Llama"),
    ({"architectures": None}, "names no architecture; allowed: LlamaForCausalLM, Mistral"),
    ({"architectures": "LlamaForCausalLM"}, "names no architecture"),
    ({"hidden_size": None}, "hidden_size is 'absent'; allowed: an integer from 1"),
    ({"hidden_size": "64"}, "hidden_size is '64'; allowed: an integer"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    ({"num_key_value_heads": 3}, "num_attention_heads is 8; allowed: a multiple of 3 KV heads"),
    ({"hidden_size": 65}, "hidden_size is 65; allowed: a multiple of 8 heads"),
    ({"head_dim": 7}, "head_dim is 7; allowed: an even number"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed: silu"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0; allowed: a number above 0"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; allowed: true or false"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'; allowed: default, li"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "factor is 'absent'"),
    ({"rope_scaling": {"type": "linear"}}, "factor is 'absent'"),
    ({"rope_scaling": 4}, "rope_scaling is 4; allowed: an object"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; allowed: 1"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_what_cannot_be_computed_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(**overrides)


def test_layer_types_must_fit_the_layers() -> None:
    with pytest.raises(ModelError, match="allowed: 4 of full_attention, sliding_attention"):
        read(architectures=["Qwen3ForCausalLM"], use_sliding_window=True,
             layer_types=["full_attention"])  # fmt: skip


MIXTRAL = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8,
           "num_experts_per_tok": 2}  # fmt: skip
QWEN3_MOE = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 3,
             "moe_intermediate_size": 24}  # fmt: skip
DEEPSEEK = {
    "q_lora_rank": None, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "n_group": 4, "topk_group": 2, "n_shared_experts": 1,
}  # fmt: skip
V2 = {"architectures": ["DeepseekV2ForCausalLM"], **DEEPSEEK}
V3 = {"architectures": ["DeepseekV3ForCausalLM"], **DEEPSEEK, "routed_scaling_factor": 2.5}


def quantized(**fields: Any) -> dict[str, Any]:
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
           "weight_block_size": [128, 128]}  # fmt: skip
    return {**V3, "quantization_config": {**fp8, **fields}}


def test_layers_have_experts_where_each_architecture_says() -> None:
    def sparse(**fields: Any) -> tuple[bool, ...]:
        moe = read(**fields).moe
        assert moe is not None
        return moe.sparse

    assert read().moe is None
    assert sparse(**MIXTRAL) == (True,) * 4
    assert sparse(**QWEN3_MOE, mlp_only_layers=[0]) == (False, True, True, True)
    assert sparse(**QWEN3_MOE, decoder_sparse_step=2) == (False, True, False, True)
    assert sparse(**V3, first_k_dense_replace=1) == (False, True, True, True)
    assert sparse(**V2, first_k_dense_replace=1, moe_layer_freq=2) == (False, False, True, False)


def test_experts_have_the_sizes_that_their_fields_say() -> None:
    mixtral, qwen, deepseek = read(**MIXTRAL).moe, read(**QWEN3_MOE).moe, read(
        **{**V3, "n_shared_experts": 2}
    ).moe  # fmt: skip
    assert mixtral is not None
    assert qwen is not None
    assert deepseek is not None
    assert (mixtral.num_experts, mixtral.top_k, mixtral.ffn_size) == (8, 2, 128)
    assert (qwen.top_k, qwen.ffn_size, qwen.shared_ffn_size) == (3, 24, 0)
    assert (deepseek.ffn_size, deepseek.shared_ffn_size) == (24, 48)
    hub = {key: value for key, value in QWEN3_MOE.items() if key != "num_experts"}
    assert read(**hub, num_local_experts=8).moe == qwen
    assert (
        read(**V2, topk_method="greedy").moe != read(**V2, topk_method="group_limited_greedy").moe
    )


def test_fp8_has_the_blocks_that_its_config_says() -> None:
    assert read(**quantized()).block_scales == (128, 128)
    assert read(**quantized(scale_fmt="ue8m0", weight_block_size=[1, 64])).block_scales == (1, 64)
    assert read(**V3).block_scales is None


def test_a_latent_is_the_only_kv_head() -> None:
    config = read(**V3)
    spec = config.kv_spec("bfloat16")
    assert (spec.num_kv_heads, spec.key_dim, spec.value_dim) == (1, 40, 0)
    assert (config.head_dim, config.rotary_dim) == (24, 8)


def test_yarn_stretches_scores_of_latent_attention() -> None:
    yarn = {"rope_type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 64}  # fmt: skip
    rope = read(**V2, rope_scaling=yarn).rope
    assert rope.amplitude == 1.0
    assert rope.score_factor == pytest.approx(1.5896, abs=1e-4)
    assert read(rope_scaling={**yarn, "attention_factor": 1.3}).rope.amplitude == 1.3


REFUSED_MIXTURES: list[tuple[dict[str, Any], str]] = [
    ({**MIXTRAL, "num_experts_per_tok": 9}, "num_experts_per_tok is 9; allowed: at most 8 experts"),
    ({**MIXTRAL, "num_local_experts": None}, "num_local_experts is 'absent'; allowed: an integer"),
    ({**QWEN3_MOE, "mlp_only_layers": 3}, "mlp_only_layers is 3; allowed: a list of layer numbers"),
    ({**V2, "norm_topk_prob": True}, "norm_topk_prob is True; allowed: false"),
    ({**V2, "topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'; allowed: greedy, group_limit"),
    ({**V2, "scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; allowed: softmax"),
    ({**V2, "mlp_bias": True}, "mlp_bias is True; allowed: false"),
    ({**V2, "qk_rope_head_dim": 7}, "qk_rope_head_dim is 7; allowed: an even number"),
    ({**V2, "kv_lora_rank": 0}, "kv_lora_rank is 0; allowed: an integer from 1"),
    ({**V3, "scoring_func": "softmax"}, "scoring_func is 'softmax'; allowed: sigmoid"),
    ({**V3, "n_group": 3}, "n_group is 3; allowed: a divisor of 8 experts that leaves 2 to a gr"),
    ({**V3, "n_group": 8}, "n_group is 8; allowed: a divisor of 8 experts that leaves 2"),
    ({**V3, "topk_group": 5}, "topk_group is 5; allowed: at most 4 groups"),
    ({**V3, "num_experts_per_tok": 5}, "num_experts_per_tok is 5; allowed: at most the 4 of 2 gr"),
    ({**V3, "routed_scaling_factor": None}, "routed_scaling_factor is 'absent'; allowed: a numb"),
    (quantized(quant_method="gptq"), "quantization_config is of method 'gptq'; allowed: fp8 with"),
    (quantized(fmt="e5m2"), "quantization_config: fmt is 'e5m2'; allowed: e4m3"),
    (quantized(activation_scheme="static"), "activation_scheme is 'static'; allowed: dynamic"),
    (quantized(weight_block_size=None), "weight_block_size is 'absent'; allowed: two int"),
    (quantized(weight_block_size=[128]), r"weight_block_size is \[128\]; allowed: two integers"),
    (quantized(weight_block_size=[128, 0]), r"weight_block_size is \[128, 0\]; allowed: two int"),
    ({"quantization_config": {}}, "quantization_config is of method 'unnamed'; allowed: fp8 with"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate is False; a"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 1}}, "beta_fast is 1; allow"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED_MIXTURES)
def test_what_cannot_be_computed_of_a_mixture_is_refused(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read(**overrides)


def test_shared_experts_are_never_assumed() -> None:
    without = {key: value for key, value in V3.items() if key != "n_shared_experts"}
    with pytest.raises(ModelError, match="n_shared_experts is 'absent'; allowed: an integer from"):
        read(**without)
    none = read(**without, n_shared_experts=None).moe
    assert none is not None
    assert none.shared_ffn_size == 0


def test_absent_norm_epsilons_are_those_that_transformers_assumes() -> None:
    absent = {"rms_norm_eps": None}
    assert read(**MIXTRAL, **absent).norm_eps == 1e-5
    assert read(**QWEN3_MOE, **absent).norm_eps == read(**V3, **absent).norm_eps == 1e-6


def test_the_models_own_original_context_goes_before_that_of_the_rope() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert read(rope_scaling=yarn).rope.original_context == 128
    both = read(rope_scaling=yarn, original_max_position_embeddings=64)
    assert both.rope.original_context == 64
