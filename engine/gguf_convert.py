"""A GGUF file turned into the Hugging Face directory that it was made from.

llama.cpp names tensors in its own way and, for the llama architecture, stores the rows of q and k
in the order of its rotary embedding; both are undone. Whatever a file says beyond what is known
here would be lost in silence, so it is refused instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eastwest.errors import ModelError
from engine.build_once import build_once
from engine.gguf_file import GGUFFile, read_gguf
from engine.gguf_tokenizer import TokenizerFacts, write_tokenizer


@dataclass(frozen=True, slots=True)
class _Architecture:
    """extra: tensors of a layer beyond the common ones. rotated: q and k are in rope order."""

    model_type: str
    class_name: str
    extra: tuple[tuple[str, str], ...] = ()
    rotated: bool = False


_ARCHITECTURES = {
    "llama": _Architecture("llama", "LlamaForCausalLM", rotated=True),
    "qwen2": _Architecture(
        "qwen2",
        "Qwen2ForCausalLM",
        (
            ("attn_q.bias", "self_attn.q_proj.bias"),
            ("attn_k.bias", "self_attn.k_proj.bias"),
            ("attn_v.bias", "self_attn.v_proj.bias"),
        ),
    ),
    "qwen3": _Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        (
            ("attn_q_norm.weight", "self_attn.q_norm.weight"),
            ("attn_k_norm.weight", "self_attn.k_norm.weight"),
        ),
    ),
}
_LAYER = (
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
)
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_OUTSIDE = ((_EMBEDDING, "model.embed_tokens.weight"), ("output_norm.weight", "model.norm.weight"))
_KEYS = frozenset({
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "rope.freq_base",
    "rope.dimension_count",
})  # fmt: skip


def convert_gguf(
    source: Path, target: Path, progress: Callable[[str], None] = lambda _: None
) -> Path:
    """`target`, a Hugging Face directory made from the GGUF file `source` unless it is there.

    Safe to call from several processes at once (see `build_once`). Needs memory for the whole
    model once. Raises `ModelError` where the file is unsound or of an unknown kind.
    """
    return build_once(
        target,
        lambda directory: write_checkpoint(source, directory, progress),
        lambda: progress(f"waiting for another process that converts {source.name}"),
    )


def write_checkpoint(source: Path, directory: Path, progress: Callable[[str], None]) -> None:
    """Fill an empty directory with config.json, model.safetensors and the tokenizer's files."""
    progress(f"reading {source.name}")
    file = read_gguf(source)
    architecture = _architecture(file)
    config = _shape_config(file, architecture)
    names = _names(file, architecture, int(config["num_hidden_layers"]))
    tokenizer = write_tokenizer(file, directory)
    if tokenizer.size != config["vocab_size"]:
        raise ModelError(
            f"{source} has {tokenizer.size} tokens, but embeddings of {config['vocab_size']}"
        )
    progress(f"dequantising {len(names)} tensors of {source.name}")
    weights = {name: _weight(file, key, architecture, config) for key, name in names.items()}
    stored = str(weights[_OUTSIDE[0][1]].dtype).removeprefix("torch.")
    config |= _token_config(tokenizer) | {"torch_dtype": stored}
    progress("writing the converted model")
    _write_json(directory / "config.json", config)
    stored_in = directory / "model.safetensors"
    save_file(weights, stored_in, metadata={"format": "pt"})
    # The library writes for its owner alone; a shared cache is as readable as its user wants it.
    stored_in.chmod((directory / "config.json").stat().st_mode & 0o777)
    _write_json(directory / "generation_config.json", _token_config(tokenizer))


def _architecture(file: GGUFFile) -> _Architecture:
    name = file.text("general.architecture")
    if name not in _ARCHITECTURES:
        raise ModelError(
            f"{file.path} is of architecture {name!r}; allowed in a GGUF: "
            f"{', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[name]


def _shape_config(file: GGUFFile, architecture: _Architecture) -> dict[str, Any]:
    """config.json without what the tokenizer knows, checked as far as its own numbers go."""
    prefix = file.text("general.architecture") + "."
    _refuse_unknown_keys(file, prefix)
    heads = file.integer(prefix + "attention.head_count")
    hidden = file.integer(prefix + "embedding_length")
    if heads < 1 or hidden < 1:
        raise ModelError(f"{file.path} has {heads} heads over {hidden} dimensions")
    kv_heads = file.integer(prefix + "attention.head_count_kv", heads)
    head_dim = file.integer(prefix + "attention.key_length", hidden // heads)
    value_dim = file.integer(prefix + "attention.value_length", head_dim)
    rotary = file.integer(prefix + "rope.dimension_count", head_dim)
    if not head_dim == value_dim == rotary or head_dim % 2 or kv_heads < 1:
        raise ModelError(
            f"{file.path} has {kv_heads} KV heads of dimensions {head_dim} (key), {value_dim} "
            f"(value) and {rotary} (rotary); allowed: one even number for all three"
        )
    embedding = file.tensors.get(_EMBEDDING, ())
    if len(embedding) != 2:
        raise ModelError(f"{file.path} has no matrix {_EMBEDDING}")
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "intermediate_size": file.integer(prefix + "feed_forward_length"),
        "num_hidden_layers": file.integer(prefix + "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "vocab_size": embedding[0],
        "max_position_embeddings": file.integer(prefix + "context_length"),
        "rms_norm_eps": file.number(prefix + "attention.layer_norm_rms_epsilon"),
        "rope_theta": file.number(prefix + "rope.freq_base", 10000.0),
        "tie_word_embeddings": _HEAD not in file.tensors,
    }


def _refuse_unknown_keys(file: GGUFFile, prefix: str) -> None:
    for key, value in file.metadata.items():
        name = key.removeprefix(prefix)
        harmless = name in _KEYS or value in (0, False, "", "none")
        if key.startswith(prefix) and not harmless:
            raise ModelError(
                f"{file.path} says {key} = {str(value)[:40]}, which a conversion would lose. "
                f"Use the model's Hugging Face directory instead"
            )


def _names(file: GGUFFile, architecture: _Architecture, layers: int) -> dict[str, str]:
    """Tensor names, GGUF to Hugging Face: exactly those of the architecture."""
    if not 0 < layers <= len(file.tensors):
        raise ModelError(f"{file.path} says it has {layers} layers in {len(file.tensors)} tensors")
    names = dict(_OUTSIDE)
    if _HEAD in file.tensors:
        names[_HEAD] = "lm_head.weight"
    for layer in range(layers):
        for key, name in _LAYER + architecture.extra:
            names[f"blk.{layer}.{key}"] = f"model.layers.{layer}.{name}"
    if absent := sorted(names.keys() - file.tensors.keys()):
        raise ModelError(f"{file.path} has no {absent[0]} ({len(absent)} tensors are absent)")
    if unknown := sorted(file.tensors.keys() - names.keys()):
        raise ModelError(
            f"{file.path} has a tensor {unknown[0]}, unknown for {architecture.model_type}; a "
            f"conversion would lose it. Use the model's Hugging Face directory instead"
        )
    return names


def _weight(
    file: GGUFFile, key: str, architecture: _Architecture, config: dict[str, Any]
) -> torch.Tensor:
    weight = file.tensor(key)
    if not architecture.rotated or not key.endswith(("attn_q.weight", "attn_k.weight")):
        return weight
    of_query = key.endswith("attn_q.weight")
    heads = config["num_attention_heads" if of_query else "num_key_value_heads"]
    if weight.shape[0] != heads * config["head_dim"]:
        raise ModelError(
            f"{file.path}: {key} has {weight.shape[0]} rows; {heads} heads of dimension "
            f"{config['head_dim']} need {heads * config['head_dim']}"
        )
    # Rotated pairs are neighbours in a GGUF, and half a head apart in Hugging Face's order.
    pairs = weight.view(heads, config["head_dim"] // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def _token_config(tokenizer: TokenizerFacts) -> dict[str, Any]:
    ends = list(tokenizer.eos)
    return {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
