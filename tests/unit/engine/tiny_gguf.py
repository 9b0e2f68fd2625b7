"""Small random models, and the GGUF files that llama.cpp would make of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CORPUS = (
    """The quick brown fox jumps over the lazy dog, doesn't it?  It's 12:30 on 2024-11-05.
    def area(radius: float) -> float:
        return 3.14159 * radius ** 2  # 100% "sure"
Die Größe ist ½ m; 東京は大きい。 emoji: 🙂👩‍👩‍👧 naïve café   trailing   spaces
"""
    * 3
)
CONTROL = ["<|endoftext|>", "<|start|>"]
USER_DEFINED = ["<think>", "</think>"]
TYPES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
CLASSES = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
Q = gguf.GGMLQuantizationType


@functools.cache
def tokens_and_merges() -> tuple[list[str], list[str]]:
    """A byte-level BPE trained on `CORPUS`, special tokens first."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=CONTROL + USER_DEFINED,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([CORPUS], trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in model["merges"]]


@functools.cache
def tiny_model(architecture: str) -> Any:
    """A random float32 transformers model with tied embeddings for llama, untied for others."""
    torch.manual_seed(7)
    config = TYPES[architecture](
        vocab_size=len(tokens_and_merges()[0]), hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=128, rope_theta=5000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=architecture == "llama", bos_token_id=1, eos_token_id=0,
        pad_token_id=None,
    )  # fmt: skip
    model = CLASSES[architecture](config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


@dataclass
class TinyGGUF:
    """What to write; change the fields to write something broken."""

    architecture: str = "llama"
    matrix_type: gguf.GGMLQuantizationType = Q.F32
    pre: str = "gpt-2"
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in {**self._facts(), **self.metadata}.items():
            if key not in self.without:
                _put(writer, key, value)
        for name, values in {**llama_cpp_tensors(self.architecture), **self.tensors}.items():
            if name not in self.without:
                kind = Q.F32 if values.ndim == 1 else self.matrix_type
                writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _facts(self) -> Mapping[str, Any]:
        tokens, merges = tokens_and_merges()
        kinds = [3 if t in CONTROL else 4 if t in USER_DEFINED else 1 for t in tokens]
        shape = {
            "block_count": 2, "context_length": 128, "embedding_length": 64,
            "feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2,
            "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5000.0,
            "rope.dimension_count": 16,
        }  # fmt: skip
        return {
            **{f"{self.architecture}.{key}": value for key, value in shape.items()},
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 0,
        }


def llama_cpp_tensors(architecture: str) -> dict[str, np.ndarray[Any, Any]]:
    """The model's tensors under llama.cpp's names and in its order."""
    model = tiny_model(architecture)
    kind = getattr(gguf.MODEL_ARCH, architecture.upper())
    name_map = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = in_rope_order(values, head_dim=16)
        key = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        assert key is not None
        tensors[key] = values
    return tensors


def in_rope_order(values: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Row i of a head's first half next to row i of its second half, written out one by one."""
    rows = []
    for head in range(len(values) // head_dim):
        for i in range(head_dim // 2):
            rows.append(values[head * head_dim + i])
            rows.append(values[head * head_dim + head_dim // 2 + i])
    return np.stack(rows)


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            raise AssertionError(f"{key} is {value!r}")
