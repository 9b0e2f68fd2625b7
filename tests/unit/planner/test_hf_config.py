"""Reading config.json: what decides, and what is refused because a plan would be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eastwest.errors import ModelError
from planner.hf_config import read_model, shape_of


def a_config(**changed: Any) -> dict[str, Any]:
    """A small dense config.json with fields changed; those that are None are left out."""
    fields: dict[str, Any] = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 256, "max_position_embeddings": 512,
    }  # fmt: skip
    return {k: v for k, v in {**fields, **changed}.items() if v is not None}


def a_sparse_config(**changed: Any) -> dict[str, Any]:
    return a_config(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, **changed)


@pytest.mark.parametrize(
    "field",
    ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"],
)
@pytest.mark.parametrize("value", [None, "64", 64.0, True, 0, -1, [64]])
def test_sizes_that_are_absent_or_of_the_wrong_kind_are_refused(field: str, value: object) -> None:
    with pytest.raises(ModelError, match=rf"tiny: {field} is .*; allowed: an integer from 1"):
        shape_of("tiny", a_config(**{field: value}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_key_value_heads": 3}, "a multiple of 3 KV heads"),
        ({"hidden_size": 60}, "a multiple of 8 heads, where head_dim is absent"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"text_config": ["no"]}, "text_config is .* an object"),
        ({"layer_types": ["full_attention"] * 3}, "4 of full_attention, sliding_attention"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types is .*linear_attention"),
        ({"layer_types": [["full_attention"]] * 4}, "4 of full_attention, sliding_attention"),
        ({"layer_types": 7}, "4 of full_attention, sliding_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_window is 'absent'"),
        ({"kv_lora_rank": 16}, "qk_nope_head_dim is 'absent'"),
        ({"num_experts": 8}, "num_experts_per_tok is 'absent'"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "at most 8 experts"),
        ({"num_experts": "8"}, "num_experts is '8'"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8'.*an object"),
        ({"quantization_config": {"quant_method": "exl9"}}, "quant_method is 'exl9'"),
    ],
)  # fmt: skip
def test_what_would_make_a_plan_wrong_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        shape_of("tiny", a_config(**changed))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mlp_only_layers", 2), ("mlp_layer_types", ["sparse"] * 9), ("mlp_layer_types", "sparse"),
        ("mlp_layer_types", ["other"] * 4), ("moe_layer_freq", [1, 1]), ("moe_layer_freq", 0),
        ("moe_layer_freq", [2] * 4), ("moe_intermediate_size", "32"), ("n_shared_experts", -1),
    ],
)  # fmt: skip
def test_fields_of_experts_that_make_no_sense_are_refused(field: str, value: object) -> None:
    fields = {**a_sparse_config(), field: value}
    with pytest.raises(ModelError, match=f"tiny: {field} is"):
        shape_of("tiny", fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("full_attention_interval", 4),  # Qwen3-Next
        ("linear_attn_config", {"kda_layers": [1]}),  # Kimi-Linear
        ("attn_layer_period", 8),  # Jamba
        ("hybrid_override_pattern", "M-M*"),  # Nemotron-H
        ("attn_type_list", [0, 1]),  # MiniMax-01
        ("attention_chunk_size", 8192),  # Llama 4
    ],
)
def test_layers_that_are_no_attention_are_refused_by_their_fields(field: str, value: Any) -> None:
    """Published configs of such models have no layer_types."""
    with pytest.raises(ModelError, match=f"{field} is .*cannot be planned for"):
        shape_of("tiny", a_config(**{field: value}))


@pytest.mark.parametrize(
    ("changed", "layers"),
    [
        ({}, 4),
        ({"first_k_dense_replace": 1}, 3),
        ({"moe_layer_freq": 2}, 2),
        ({"moe_layer_freq": [0, 1, 1, 1]}, 3),
        ({"decoder_sparse_step": 2}, 2),
        ({"mlp_only_layers": [0, 3]}, 2),
        ({"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}, 3),
        ({"first_k_dense_replace": 4}, 0),
    ],
)
def test_layers_with_experts(changed: dict[str, Any], layers: int) -> None:
    assert shape_of("tiny", a_sparse_config(**changed)).sparse_layers == layers


def test_shared_experts_are_counted_or_sized() -> None:
    counted = shape_of("tiny", a_sparse_config(n_shared_experts=2))
    sized = shape_of("tiny", a_sparse_config(shared_expert_intermediate_size=48))
    assert counted.shared_params == 3 * 64 * 2 * 32
    assert sized.shared_params == 3 * 64 * 48


@pytest.mark.parametrize(
    ("changed", "windows"),
    [
        ({"sliding_window": 128}, (None,) * 4),
        ({"sliding_window": 128, "model_type": "mistral"}, (128,) * 4),
        ({"sliding_window": None, "model_type": "mistral"}, (None,) * 4),
        ({"sliding_window": 9, "sliding_window_pattern": 2}, (9, None, 9, None)),
        ({"sliding_window": 9, "model_type": "gemma2"}, (9, None, 9, None)),
        ({"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 3},
         (None, None, None, 9)),
        ({"sliding_window": 9, "use_sliding_window": False, "max_window_layers": 3}, (None,) * 4),
        ({"sliding_window": 9,
          "layer_types": ["sliding_attention", "full_attention"] * 2}, (9, None, 9, None)),
    ],
)  # fmt: skip
def test_windows(changed: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert shape_of("tiny", a_config(**changed)).windows == windows


def _packed(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": weights}}


@pytest.mark.parametrize(
    ("quantization", "weights"),
    [
        (None, "bf16"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8w"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8w"),
        (_packed(weights={"num_bits": 4, "type": "int", "group_size": 32}), "int4"),
        (_packed(weights={"num_bits": 8, "type": "int"}), "int8w"),
        (_packed(weights={"num_bits": 8, "type": "int"},
                 input_activations={"num_bits": 8, "type": "int"}), "int8"),
        (_packed(weights={"num_bits": 8, "type": "float"},
                 input_activations={"num_bits": 8, "type": "float"}), "fp8"),
        (_packed(weights={"num_bits": 4, "type": "int"},
                 input_activations={"num_bits": 8, "type": "int"}), "int4"),
        ({**_packed(weights={"num_bits": 4, "type": "int"}),
          "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "int4"),
        (_packed(weights={"num_bits": 4, "type": "float", "group_size": 32}), "mxfp4"),
        (_packed(weights={"num_bits": 4, "type": "float", "group_size": 16}), "nvfp4"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_was_published_in(
    quantization: dict[str, Any] | None, weights: str
) -> None:
    assert shape_of("tiny", a_config(quantization_config=quantization)).weights == weights


@pytest.mark.parametrize("bad", [{"num_bits": "4"}, {"num_bits": 5}, [4]])
def test_bits_that_no_format_has_are_refused(bad: Any) -> None:
    with pytest.raises(ModelError, match=r"quantization_config: .*allowed"):
        shape_of("tiny", a_config(quantization_config=_packed(weights=bad)))


def test_full_precision_is_what_the_checkpoint_says() -> None:
    assert shape_of("tiny", a_config(torch_dtype="float32")).weights == "fp32"
    assert shape_of("tiny", a_config(dtype="float32")).weights == "fp32"


def test_a_text_config_inside_a_larger_one_is_what_counts() -> None:
    outer = {"model_type": "seeing", "text_config": a_config(), "hidden_size": 9}
    assert shape_of("tiny", outer) == shape_of("tiny", a_config())
    quantized = {**outer, "quantization_config": {"quant_method": "fp8"}}
    assert shape_of("tiny", quantized).weights == "fp8"


def test_opt_has_positions_no_gate_and_tied_embeddings() -> None:
    model = shape_of("tiny", a_config(model_type="opt", ffn_dim=96, intermediate_size=None))
    assert (model.ffn_size, model.ffn_matrices, model.tied, model.positions) == (96, 2, True, 514)
    assert model.embedding_params == (256 + 514) * 64


def test_a_file_or_a_directory_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(a_config()), encoding="utf-8")
    assert read_model(file) == read_model(tmp_path)
    assert read_model(tmp_path).name == tmp_path.name


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"7"])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_model(file)
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(tmp_path / "absent.json")
