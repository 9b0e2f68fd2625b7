"""Small random checkpoints of every supported architecture, made with `transformers`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

VOCAB = 211
CONTEXT = 512

YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0,
    "mscale_all_dim": 0.7, "beta_fast": 16, "beta_slow": 1,
    "original_max_position_embeddings": 128,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 36, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 20, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}  # fmt: skip
# What differs from the sizes that all share. Odd groups, head dims that the hidden size does not
# imply, biases, windows: one architecture each, so that nothing holds by coincidence.
_SPECIFIC: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96},
    "mistral": {"sliding_window": 24, "head_dim": 32},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 20,
              "max_window_layers": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 24},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 40,
                "intermediate_size": 48},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
                  "norm_topk_prob": True, "mlp_only_layers": [1]},
    "deepseek_v2": {**_LATENT, "q_lora_rank": None, "n_shared_experts": 2, "n_group": 4,
                    "topk_group": 2, "topk_method": "group_limited_greedy",
                    "routed_scaling_factor": 1.5},
    "deepseek_v3": {**_LATENT, "q_lora_rank": 28, "n_shared_experts": 1, "n_group": 4,
                    "topk_group": 2, "rope_parameters": YARN},
}  # fmt: skip
ARCHITECTURES = tuple(_SPECIFIC)
EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3")
# Sizes that two, three and six tensor ranks can share, of each architecture with experts.
_SIX: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 96,
                        "intermediate_size": 96}  # fmt: skip
_SIX_LATENT = {**_SIX, "n_routed_experts": 6, "n_group": 3, "moe_intermediate_size": 36}
SIXES: dict[str, dict[str, Any]] = {
    "mixtral": {**_SIX, "num_local_experts": 6},
    "qwen3_moe": {**_SIX, "num_experts": 6, "moe_intermediate_size": 36},
    "deepseek_v2": _SIX_LATENT,
    "deepseek_v3": _SIX_LATENT,
}


def tiny_checkpoint(architecture: str, directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a random model of `architecture` (one of `ARCHITECTURES`) as safetensors.

    `overrides` are fields of its config. Weights are large enough for attention, routing and all
    biases to matter, so that a wrong mask or a lost bias changes tokens. There is no tokenizer.

    Where two experts' scores are equal to the last bits, the order of a sum could choose between
    them; weights of this size leave them apart by far more than float32 errs.
    """
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": 2,
        "initializer_range": 0.15,
    }
    config = transformers.AutoConfig.for_model(
        architecture, **{**fields, **_SPECIFIC[architecture], **overrides}
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.2 * torch.randn_like(buffer))
    model.save_pretrained(directory)
    return directory


def in_fp8(directory: Path, target: Path, block: tuple[int, int]) -> Path:
    """Write the model again with the matrices of its layers in FP8, one scale for each block, as
    DeepSeek-V3 is published; `directory` gets what these are worth in float32."""
    tensors = load_file(directory / "model.safetensors")
    published = dict(tensors)
    for name, weight in tensors.items():
        if weight.dim() == 2 and name.startswith("model.layers.") and ".gate." not in name:
            elements, scales = _quantized(weight, block)
            published[name], published[f"{name}_scale_inv"] = elements, scales
            tensors[name] = elements.float() * _spread(scales, weight, block)
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": list(block),
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))
    for place, content in ((directory, tensors), (target, published)):
        save_file(content, place / "model.safetensors", metadata={"format": "pt"})
    return target


def _quantized(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = (range(0, n, b) for n, b in zip(weight.shape, block, strict=True))
    scales = torch.tensor(
        [[float(weight[r : r + block[0], c : c + block[1]].abs().max()) for c in columns]
         for r in rows]
    ) / 448.0  # fmt: skip
    return (weight / _spread(scales, weight, block)).to(torch.float8_e4m3fn), scales


def _spread(scales: torch.Tensor, weight: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """``[rows, columns]``: the scale of every element."""
    row, column = (torch.arange(n) // b for n, b in zip(weight.shape, block, strict=True))
    return scales[row][:, column]
