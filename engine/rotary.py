"""Rotary position embedding, in the two-halves order that most Hugging Face checkpoints use."""

from __future__ import annotations

import math

import torch

from engine.architecture import ArchitectureConfig
from engine.rope_config import RopeScaling


def inverse_frequencies(config: ArchitectureConfig) -> torch.Tensor:
    """``[D / 2]`` float32: radians a position for each pair of dims."""
    dim = config.rotary_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = 1.0 / (config.rope_theta**exponents)
    if config.rope.kind == "linear":
        return plain / config.rope.factor
    if config.rope.kind == "llama3":
        return _llama3(plain, config.rope)
    if config.rope.kind == "yarn":
        return _yarn(plain, config.rope, config.rope_theta)
    return plain


def _llama3(plain: torch.Tensor, rope: RopeScaling) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    turns = rope.original_context * plain / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * plain + (1 - kept) * plain / rope.factor


def _yarn(plain: torch.Tensor, rope: RopeScaling, theta: float) -> torch.Tensor:
    """Pairs of dims that turn seldom in the original context are stretched by `factor`, those
    that turn often kept, those between blended by their number."""
    pairs = len(plain)

    def pair_of(turns: float) -> float:
        return pairs * math.log(rope.original_context / (turns * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(pair_of(rope.beta_fast)), 0)
    last = min(math.ceil(pair_of(rope.beta_slow)), 2 * pairs - 1)
    # A width above 0, where both are one.
    blended = (torch.arange(pairs) - first) / (last - first or 1e-3)
    stretched = blended.clamp(0, 1)
    return stretched * plain / rope.factor + (1 - stretched) * plain


def rotation(
    positions: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype, amplitude: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """``positions [T]`` -> (cos, sin), each ``[T, 1, D]``; sin is negated in its first half."""
    angles = positions.float().unsqueeze(1) * frequencies
    cos, sin = angles.cos(), angles.sin()
    if amplitude != 1.0:
        cos, sin = cos * amplitude, sin * amplitude
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
