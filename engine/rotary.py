"""Rotary position embedding, in the two-halves order that Hugging Face checkpoints use."""

from __future__ import annotations

import math

import torch

from engine.architecture import ArchitectureConfig, RopeScaling


def inverse_frequencies(config: ArchitectureConfig) -> torch.Tensor:
    """``[D / 2]`` float32: radians a position for each pair of dims."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = 1.0 / (config.rope_theta**exponents)
    if config.rope.kind == "linear":
        return plain / config.rope.factor
    if config.rope.kind == "llama3":
        return _llama3(plain, config.rope)
    return plain


def _llama3(plain: torch.Tensor, rope: RopeScaling) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    turns = rope.original_context * plain / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * plain + (1 - kept) * plain / rope.factor


def rotation(
    positions: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """``positions [T]`` -> (cos, sin), each ``[T, 1, D]``; sin is negated in its first half."""
    angles = positions.float().unsqueeze(1) * frequencies
    cos, sin = angles.cos(), angles.sin()
    return (
        torch.cat([cos, cos], dim=1).unsqueeze(1).to(dtype),
        torch.cat([-sin, sin], dim=1).unsqueeze(1).to(dtype),
    )


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``[T, heads, D]`` turned by each token's position; a new, contiguous tensor."""
    half = heads.shape[-1] // 2
    turned = heads * cos
    turned[..., :half].addcmul_(heads[..., half:], sin[..., :half])
    turned[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return turned
