"""Reading config.json: what is understood, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eastwest.errors import ModelError
from engine.architecture import ArchitectureConfig
from engine.checkpoint import open_checkpoint
from tests.checkpoints import ARCHITECTURES, tiny_checkpoint


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
    directory = tiny_checkpoint(architecture, tmp_path, rope_theta=7777.0)
    config = ArchitectureConfig.from_hf(open_checkpoint(directory).config)
    assert config.rope_theta == 7777.0
    assert config.qkv_bias == (architecture == "qwen2")
    assert config.qk_norm == (architecture == "qwen3")


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
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'; allowed: default, linear, ll"),
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
