"""From router logits to experts and weights, in float32.

Shapes: T tokens, E experts, K of them to a token.
"""

from __future__ import annotations

import torch

from engine.moe_config import Routing, Scoring

# What DeepSeek adds to a sum before it divides by it; nothing beside any sum of softmax scores.
_LEAST = 1e-20


def route(
    logits: torch.Tensor, routing: Routing, correction: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``logits [T, E]`` float32 -> (ids ``[T, K]`` int64, weights ``[T, K]`` float32).

    correction: ``[E]`` float32, added to the scores that choose and not to those that weigh.
    """
    sigmoid = routing.scoring is Scoring.SIGMOID
    scores = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)
    choosing = scores if correction is None else scores + correction
    if routing.groups > 1:
        choosing = _of_best_groups(choosing, routing)
    best, ids = choosing.topk(routing.top_k, dim=-1, sorted=False)
    weights = best if choosing is scores else scores.gather(1, ids)
    if routing.renormalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + _LEAST)
    return ids, weights if routing.scale == 1.0 else weights * routing.scale


def _of_best_groups(scores: torch.Tensor, routing: Routing) -> torch.Tensor:
    """``scores [T, E]`` with those of all but the best groups out of the running."""
    size = scores.shape[1] // routing.groups
    by_group = scores.view(-1, routing.groups, size)
    worth = by_group.topk(routing.group_best, dim=-1, sorted=False).values.sum(dim=-1)
    kept = worth.topk(routing.groups_kept, dim=-1, sorted=False).indices
    out = torch.ones_like(worth, dtype=torch.bool).scatter_(1, kept, value=False)
    return by_group.masked_fill(out.unsqueeze(-1), float("-inf")).view(scores.shape)
