"""Reads the shape of a model from a Hugging Face config.json.

Fields decide, not the architecture's name, so that models that no engine here runs can be planned
for. What would make a plan wrong is refused: layers that are neither attention nor a known window,
and sizes that are absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eastwest.errors import ModelError
from eastwest.hf_fields import HfFields
from planner.model_shape import Experts, Indexer, Latent, ModelShape

# Families whose feed-forward network has no gate.
_WITHOUT_GATE = frozenset({
    "opt", "gpt2", "gpt_neox", "falcon", "phi", "starcoder2", "nemotron", "bloom", "mpt", "gptj",
})  # fmt: skip
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "experts_per_token")
_OPT_OFFSET = 2  # rows of OPT's position table before the first position
# Windows are for all layers in these families, where a config gives one and no layer_types.
_ALL_WINDOWED = frozenset({"mistral", "mixtral", "phi3", "starcoder2"})
# In these, every n-th layer sees everything, where a config says neither n nor layer_types.
_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
# Fields of models with layers that keep a state, or see a chunk, instead of KV; and of experts
# whose layers are told in another way.
_UNKNOWN_LAYERS = (
    "full_attention_interval", "linear_attn_config", "attn_layer_period", "attn_layer_indices",
    "attn_type_list", "hybrid_override_pattern", "layers_block_type", "block_types", "mamba_d_ssm",
    "attention_chunk_size", "interleave_moe_layer_step",
)  # fmt: skip


def read_model(path: Path) -> ModelShape:
    """The shape in a config.json, or in that of a model directory. Raises `ModelError`."""
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as a config.json: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{file} holds a {type(fields).__name__}; allowed: a JSON object")
    name = file.parent.name if file.name == "config.json" else file.stem
    return shape_of(name or str(file), fields)


def shape_of(name: str, fields: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json object describes. Raises `ModelError`, naming the field."""
    outer = HfFields(name, fields)
    read = outer.sub("text_config") if "text_config" in outer.given else outer
    kind = str(read.given.get("model_type", ""))
    for field in _UNKNOWN_LAYERS:
        if field in read.given:
            raise read.error(field, "absent: such layers cannot be planned for")
    layers = read.count("num_hidden_layers")
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
    latent = _latent(read)
    opt = kind == "opt"
    if "head_dim" not in read.given and latent is None and hidden % heads:
        raise read.error("hidden_size", f"a multiple of {heads} heads, where head_dim is absent")
    experts = _experts(read, layers)
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=1 if latent is not None else _kv_heads(read, heads),
        head_dim=_head_dim(read, hidden, heads, latent),
        ffn_size=read.count("ffn_dim" if opt else "intermediate_size"),
        vocab=read.count("vocab_size"),
        context_tokens=read.count("max_position_embeddings", 1 << 20),
        windows=_windows(read, kind, layers),
        tied=read.flag("tie_word_embeddings", opt),
        ffn_matrices=2 if kind in _WITHOUT_GATE else 3,
        positions=read.count("max_position_embeddings") + _OPT_OFFSET if opt else 0,
        experts=experts,
        latent=latent,
        indexer=_indexer(read, layers),
        weights=_weights(outer if "quantization_config" in outer.given else read),
    )


def _kv_heads(read: HfFields, heads: int) -> int:
    kv_heads = read.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise read.error("num_attention_heads", f"a multiple of {kv_heads} KV heads")
    return kv_heads


def _head_dim(read: HfFields, hidden: int, heads: int, latent: Latent | None) -> int:
    if latent is not None:
        return latent.plain_dim + latent.rope_dim
    return read.count("head_dim", max(1, hidden // heads))


def _latent(read: HfFields) -> Latent | None:
    if "kv_lora_rank" not in read.given:
        return None
    return Latent(
        query_rank=read.count("q_lora_rank") if "q_lora_rank" in read.given else None,
        rank=read.count("kv_lora_rank"),
        plain_dim=read.count("qk_nope_head_dim"),
        rope_dim=read.count("qk_rope_head_dim"),
        value_dim=read.count("v_head_dim"),
    )


def _indexer(read: HfFields, layers: int) -> Indexer | None:
    if "index_topk" not in read.given:
        return None
    types = _by_layer(read, "indexer_types", layers, "full", "shared")
    if types is not None:
        own = types.count("full")
    else:  # the first layers, and every so many after them
        every, first = read.count("index_topk_freq", 1), read.count("index_skip_topk_offset", 1)
        own = first + (layers - 1 - (first - 1)) // every if first <= layers else layers
    return Indexer(
        read.count("index_n_heads"), read.count("index_head_dim"), read.count("index_topk"), own
    )


def _experts(read: HfFields, layers: int) -> Experts | None:
    field = next((f for f in _EXPERT_COUNTS if f in read.given), None)
    if field is None or read.count(field, at_least=0) <= 1:
        return None
    count = read.count(field)
    top = next((f for f in _EXPERTS_PER_TOKEN if f in read.given), _EXPERTS_PER_TOKEN[0])
    top_k = read.count(top)
    if top_k > count:
        raise read.error(top, f"at most {count} experts")
    size = read.count("moe_intermediate_size", read.count("intermediate_size"))
    shared = size * read.count("n_shared_experts", 0, at_least=0)
    shared += read.count("shared_expert_intermediate_size", 0, at_least=0)
    return Experts(count, top_k, size, shared, _sparse_layers(read, layers))


def _sparse_layers(read: HfFields, layers: int) -> int:
    types = _by_layer(read, "mlp_layer_types", layers, "sparse", "dense")
    if types is not None:
        return types.count("sparse")
    if isinstance(read.given.get("moe_layer_freq"), list):
        return (_by_layer(read, "moe_layer_freq", layers, 0, 1) or []).count(1)
    first = read.count("first_k_dense_replace", 0, at_least=0)
    freq, step = read.count("moe_layer_freq", 1), read.count("decoder_sparse_step", 1)
    dense = read.given.get("mlp_only_layers", [])
    if not isinstance(dense, list):
        raise read.error("mlp_only_layers", "a list of layers")
    return sum(
        1 for i in range(first, layers) if i % freq == 0 and i not in dense and (i + 1) % step == 0
    )


def _by_layer(read: HfFields, field: str, layers: int, *allowed: str | int) -> list[Any] | None:
    """A field with one of `allowed` for each layer; None where it is absent."""
    if field not in read.given:
        return None
    given = read.given[field]
    if not isinstance(given, list) or len(given) != layers or any(x not in allowed for x in given):
        raise read.error(field, f"{layers} of {', '.join(map(str, allowed))}")
    return given


def _windows(read: HfFields, kind: str, layers: int) -> tuple[int | None, ...]:
    everywhere: tuple[int | None, ...] = (None,) * layers
    types = _by_layer(read, "layer_types", layers, "full_attention", "sliding_attention")
    if types is not None:
        if "sliding_attention" not in types:
            return everywhere
        window = read.count("sliding_window")
        return tuple(window if t == "sliding_attention" else None for t in types)
    if "sliding_window" not in read.given:
        return everywhere
    if kind in _ALL_WINDOWED:
        return (read.count("sliding_window"),) * layers
    if read.flag("use_sliding_window", False):
        first = read.count("max_window_layers", 0, at_least=0)
        window = read.count("sliding_window")
        return tuple(window if i >= first else None for i in range(layers))
    if "sliding_window_pattern" in read.given or kind in _PATTERNS:
        pattern = read.count("sliding_window_pattern", _PATTERNS.get(kind))
        window = read.count("sliding_window")
        return tuple(None if (i + 1) % pattern == 0 else window for i in range(layers))
    return everywhere


def _weights(read: HfFields) -> str:
    """What the checkpoint was published in, as `planner.precision` calls it."""
    if "quantization_config" not in read.given:
        dtype = str(read.given.get("torch_dtype", read.given.get("dtype", "bfloat16")))
        return "fp32" if dtype == "float32" else "bf16"
    how = read.sub("quantization_config")
    method = str(how.given.get("quant_method", "unnamed")).lower()
    text = json.dumps(dict(how.given), default=str).lower()
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if "nvfp4" in text:
        return "nvfp4"
    if method in ("awq", "gptq", "compressed-tensors", "bitsandbytes", "auto-round"):
        return _packed(how)
    if method == "modelopt":
        return "fp8"
    raise how.error("quant_method", "fp8, mxfp4, nvfp4, awq, gptq, compressed-tensors, modelopt")


def _packed(how: HfFields) -> str:
    """Of weights that are packed by groups: those of the first group, where there are several
    (activations and KV have bits of their own)."""
    groups = how.given.get("config_groups")
    group = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else how.given
    weights = group.get("weights", how.given) if isinstance(group, Mapping) else how.given
    if not isinstance(weights, Mapping):
        raise how.error("config_groups", "groups, each with its weights")
    wide = weights.get("load_in_8bit") is True
    bits = next(
        (weights[b] for b in ("num_bits", "bits", "w_bit") if b in weights), 8 if wide else 4
    )
    if bits not in (2, 3, 4, 8):
        raise how.error("num_bits" if "num_bits" in how.given else "bits", "2, 3, 4 or 8")
    if weights.get("type") == "float":
        return "fp8" if bits == 8 else "nvfp4" if weights.get("group_size") == 16 else "mxfp4"
    if bits < 8:
        return "int4"
    return "int8" if isinstance(groups, Mapping) and group.get("input_activations") else "int8w"
