"""Choosing tokens from logits.

Order, as in vLLM: penalties and bans, temperature, min_p, top_k, top_p (over what top_k left).
Log-probabilities are those of the model's own distribution, before all of these.

A token is drawn by inverting the distribution's cumulative sum at one uniform number, which is a
function of the seed and the token's position in the output alone: a counter-based generator
(Philox) with the seed as key and the position as counter. So a sequence goes on unchanged in any
batch and on any worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from eastwest.ports import SampleInput
from eastwest.types import SampledToken, SamplingParams, TopLogprob

# Candidates looked at first for top_p; a nucleus is seldom wider, and sorting everything is slow.
_NUCLEUS = 1024
_UNIFORM_BITS = 48  # fewer than a float64 holds, so that uniform * total stays below total
_TEMPERATURE_MIN = 1e-5  # below it, float32 quotients overflow and the choice is greedy anyway


def sample(logits: torch.Tensor, inputs: Sequence[SampleInput]) -> list[SampledToken]:
    """One token for each row of ``logits [S, vocab]`` (float32; not changed)."""
    assert len(logits) == len(inputs)
    plain = [i for i, row in enumerate(inputs) if row.params.greedy and not _edited(row)]
    rows = logits if len(plain) == len(inputs) else logits[plain]
    tokens = dict(zip(plain, rows.argmax(-1).tolist() if plain else [], strict=True))
    results = []
    for i, row in enumerate(inputs):
        token = tokens[i] if i in tokens else _choose(_edit(logits[i], row), row)
        results.append(_with_logprobs(token, logits[i], row.params.logprobs))
    return results


def uniform(seed: int, position: int) -> float:
    """In ``[0, 1)``, the same for equal arguments, everywhere and always."""
    bits = int(np.random.Philox(key=seed, counter=position).random_raw())
    return (bits >> (64 - _UNIFORM_BITS)) / (1 << _UNIFORM_BITS)


def _edited(row: SampleInput) -> bool:
    params = row.params
    penalised = params.presence_penalty or params.frequency_penalty
    return bool(row.banned or penalised) or params.repetition_penalty != 1.0


def _edit(logits: torch.Tensor, row: SampleInput) -> torch.Tensor:
    """``[vocab]`` after penalties and bans."""
    if not _edited(row):
        return logits
    params, device = row.params, logits.device
    logits = logits.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.unique(
            torch.tensor([*row.prompt, *row.output], device=device, dtype=torch.long)
        )
        values, factor = logits[seen], params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / factor, values * factor)
    if row.output and (params.presence_penalty or params.frequency_penalty):
        output = torch.tensor(row.output, device=device, dtype=torch.long)
        tokens, counts = torch.unique(output, return_counts=True)
        logits[tokens] -= params.presence_penalty + params.frequency_penalty * counts
    if row.banned:
        logits[list(row.banned)] = float("-inf")
    return logits


def _choose(logits: torch.Tensor, row: SampleInput) -> int:
    params = row.params
    if params.greedy:
        return int(logits.argmax())
    assert params.seed is not None, "a seed is drawn at admission where the client gives none"
    scaled = (logits - logits.max()) / max(params.temperature, _TEMPERATURE_MIN)
    if params.min_p > 0:
        scaled.masked_fill_(scaled < math.log(params.min_p), float("-inf"))
    point = uniform(params.seed, len(row.output))
    if params.top_k == 0 and params.top_p == 1.0:
        return _invert(scaled.softmax(-1), point)
    candidates, probabilities = _nucleus(scaled, params)
    return int(candidates[_invert(probabilities, point)])


def _nucleus(scaled: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, probabilities), most likely first, of what top_k and top_p leave.

    The most likely token is always left.
    """
    vocab = len(scaled)
    width = min(params.top_k or _NUCLEUS, vocab)
    while True:
        values, tokens = scaled.topk(width)
        if params.top_k:
            probabilities = values.softmax(-1)
        else:
            probabilities = (values - scaled.logsumexp(-1)).exp()
        before = probabilities.cumsum(-1, dtype=torch.float64) - probabilities
        kept = int((before < params.top_p).sum())
        if params.top_k or kept < width or width == vocab:
            kept = max(1, kept)
            return tokens[:kept], probabilities[:kept]
        width = min(width * 8, vocab)


def _invert(probabilities: torch.Tensor, point: float) -> int:
    """The index whose share of the cumulative sum holds `point`; never one of no probability."""
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    return int(torch.searchsorted(sums, point * float(sums[-1]), right=True))


def _with_logprobs(token: int, logits: torch.Tensor, count: int | None) -> SampledToken:
    if count is None:
        return SampledToken(token)
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(count)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return SampledToken(
        token, float(logprobs[token]), tuple(TopLogprob(t, value) for t, value in pairs)
    )
