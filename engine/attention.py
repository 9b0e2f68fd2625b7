"""Causal attention of a mixed batch over paged KV.

Queries are cut into segments of at most `QUERY_ROWS` consecutive tokens of one sequence. A segment
attends to its keys where they lie: a view of the pool where they are one run of slots, gathered
first where they are several. The query heads that share a KV head become further rows of one
product. Nothing about a segment depends on the rest of the batch.

Shapes: T tokens, H KV heads, G query heads to each of them, D head dim, S slots of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from eastwest.paged_kv import block_runs
from engine.kv_memory import LayerKV

QUERY_ROWS = 64


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence: T index of the first, its position, how many."""

    first: int
    start: int
    count: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class Segment:
    """Queries ``[first, first + count)`` of T and the slots of all keys they may see.

    runs: ``(first slot, count)`` in the order of positions. mask: additive,
    ``[count * G, keys]``, rows ordered (query, head); None where there is nothing to hide.
    """

    first: int
    count: int
    runs: tuple[tuple[int, int], ...]
    mask: torch.Tensor | None


class SegmentPlanner:
    """Cuts spans into segments for one window; one step's segments share their masks.

    keys_max: the most keys of any segment to come. like: has the masks' dtype and device.
    """

    def __init__(
        self, block_tokens: int, group: int, window: int | None, keys_max: int, like: torch.Tensor
    ) -> None:
        self._block_tokens = block_tokens
        self._group = group
        self._window = window
        self._keys_max = keys_max
        self._like = like
        self._masks: dict[int, torch.Tensor] = {}

    def plan(self, span: Span) -> list[Segment]:
        segments = []
        for offset in range(0, span.count, QUERY_ROWS):
            count = min(QUERY_ROWS, span.count - offset)
            end = span.start + offset + count
            begin = 0 if self._window is None else max(0, end - count + 1 - self._window)
            mask = None
            if count > 1:
                mask = self._mask(count)[:, self._keys_max - (end - begin) :]
            runs = slot_runs(span.blocks, self._block_tokens, begin, end)
            segments.append(Segment(span.first + offset, count, runs, mask))
        return segments

    def _mask(self, count: int) -> torch.Tensor:
        """``[count * G, keys_max]`` for the last `count` positions as queries. For fewer keys
        its last columns serve, since only distances matter."""
        if count not in self._masks:
            keys, device = self._keys_max, self._like.device
            key = torch.arange(keys, device=device)
            query = torch.arange(keys - count, keys, device=device).unsqueeze(1)
            hidden = key > query
            if self._window is not None:
                hidden |= key <= query - self._window
            mask = torch.zeros(count, keys, dtype=self._like.dtype, device=device)
            mask.masked_fill_(hidden, float("-inf"))
            self._masks[count] = mask.repeat_interleave(self._group, dim=0)
        return self._masks[count]


def slot_runs(
    blocks: Sequence[int], block_tokens: int, begin: int, end: int
) -> tuple[tuple[int, int], ...]:
    """``(first slot, count)`` of the slots of positions ``[begin, end)``, in order."""
    first = begin // block_tokens
    skipped, wanted = begin - first * block_tokens, end - begin
    runs = []
    for block, count in block_runs(blocks[first : -(-end // block_tokens)]):
        length = min(count * block_tokens - skipped, wanted)
        runs.append((block * block_tokens + skipped, length))
        skipped, wanted = 0, wanted - length
    return tuple(runs)


def attend(
    queries: torch.Tensor, kv: LayerKV, segments: Sequence[Segment], scale: float | None = None
) -> torch.Tensor:
    """``queries [T, H, G, D]`` over the layer's keys and values; over its keys alone, which are
    their own values, where it has no others. scale: of the scores, ``D ** -0.5`` for None.

    Returns ``[queries of all segments, H * G * D]``, in the segments' order.
    """
    _, heads, group, dim = queries.shape
    attended = []
    for segment in segments:
        part = queries[segment.first : segment.first + segment.count]
        if segment.count > 1:
            part = part.transpose(0, 1).reshape(1, heads, segment.count * group, dim)
        keys = kv.keys(segment.runs)
        values = kv.values(segment.runs) if kv.has_values else keys
        out = F.scaled_dot_product_attention(part, keys, values, segment.mask, scale=scale)
        if segment.count > 1:
            out = out.view(heads, segment.count, group, dim).transpose(0, 1)
        attended.append(out)
    return torch.cat(attended).view(-1, heads * group * dim)
