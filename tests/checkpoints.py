"""Small random checkpoints of every supported architecture, made with `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 211
CONTEXT = 512

# What differs from the sizes that all share. Odd groups, head dims that the hidden size does not
# imply, biases, windows: one architecture each, so that nothing holds by coincidence.
_SPECIFIC: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96},
    "mistral": {"sliding_window": 24, "head_dim": 32},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 20,
              "max_window_layers": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 24},
}  # fmt: skip
ARCHITECTURES = tuple(_SPECIFIC)


def tiny_checkpoint(architecture: str, directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a random model of `architecture` (one of `ARCHITECTURES`) as safetensors.

    `overrides` are fields of its config. Weights are large enough for attention and all biases
    to matter, so that a wrong mask or a lost bias changes tokens. There is no tokenizer.
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
    model.save_pretrained(directory)
    return directory
