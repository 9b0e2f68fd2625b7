"""Causal attention of a mixed batch over paged KV.

Every row of a batch is cut into segments of at most `QUERY_ROWS` consecutive queries. A segment
attends to its keys where they lie: a view of the pool where they are one run of slots, gathered
first where they are several. The query heads that share a KV head become further rows of one
product. Nothing about a segment depends on the rest of the batch.

Shapes: T tokens of the batch, H KV heads, G query heads to each of them, D head dim, S slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.kv_memory import block_runs

QUERY_ROWS = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """Queries ``[first, first + count)`` of the batch and the slots of all keys they may see.

    mask: additive, ``[count * G, keys]``, rows ordered (query, head); None where there is
    nothing to hide (one query).
    """

    first: int
    count: int
    runs: tuple[tuple[int, int], ...]  # (first slot, count)
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Span:
    """One row of a batch: its queries begin at `first` of T and at position `start`."""

    first: int
    start: int
    count: int
    blocks: Sequence[int]


class SegmentPlanner:
    """Cuts rows into segments for one window; masks are shared by the segments of one step."""

    def __init__(
        self, block_tokens: int, group: int, window: int | None, like: torch.Tensor
    ) -> None:
        self._block_tokens = block_tokens
        self._group = group
        self._window = window
        self._like = like
        self._masks: dict[int, torch.Tensor] = {}

    def plan(self, spans: Iterable[Span]) -> list[Segment]:
        spans = list(spans)
        keys_max = max((s.start + s.count for s in spans), default=0)
        segments = []
        for span in spans:
            for offset in range(0, span.count, QUERY_ROWS):
                count = min(QUERY_ROWS, span.count - offset)
                end = span.start + offset + count
                begin = 0
                if self._window is not None:
                    begin = max(0, end - count + 1 - self._window)
                runs = self._runs(span.blocks, begin, end)
                mask = None
                if count > 1:
                    mask = self._mask(count, keys_max)[:, keys_max - (end - begin) :]
                segments.append(Segment(span.first + offset, count, runs, mask))
        return segments

    def _runs(self, blocks: Sequence[int], begin: int, end: int) -> tuple[tuple[int, int], ...]:
        """The slots of positions ``[begin, end)``, in order."""
        size = self._block_tokens
        first = begin // size
        skipped, wanted = begin - first * size, end - begin
        runs = []
        for block, count in block_runs(blocks[first : -(-end // size)]):
            length = min(count * size - skipped, wanted)
            runs.append((block * size + skipped, length))
            skipped, wanted = 0, wanted - length
        return tuple(runs)

    def _mask(self, count: int, keys: int) -> torch.Tensor:
        """``[count * G, keys]`` for the last `count` of `keys` positions as queries. For fewer
        keys its last columns serve, since only distances matter."""
        if count not in self._masks:
            device = self._like.device
            key = torch.arange(keys, device=device)
            query = torch.arange(keys - count, keys, device=device).unsqueeze(1)
            hidden = key > query
            if self._window is not None:
                hidden |= key <= query - self._window
            mask = torch.zeros(count, keys, dtype=self._like.dtype, device=device)
            mask.masked_fill_(hidden, float("-inf"))
            self._masks[count] = mask.repeat_interleave(self._group, dim=0)
        return self._masks[count]


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, segments: Sequence[Segment]
) -> torch.Tensor:
    """``queries [T, H, G, D]`` over ``keys, values [H, S, D]``: ``[queries of segments, H * G * D]``.

    The result has the segments' queries in their order.
    """
    _, heads, group, dim = queries.shape
    total = sum(segment.count for segment in segments)
    attended = queries.new_empty(total, heads, group, dim)
    done = 0
    for segment in segments:
        part = queries[segment.first : segment.first + segment.count]
        folded = part.transpose(0, 1).reshape(1, heads, segment.count * group, dim)
        out = F.scaled_dot_product_attention(
            folded, _lying(keys, segment.runs), _lying(values, segment.runs), segment.mask
        )
        unfolded = out.view(heads, segment.count, group, dim).transpose(0, 1)
        attended[done : done + segment.count] = unfolded
        done += segment.count
    return attended.view(total, heads * group * dim)


def _lying(pool: torch.Tensor, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """``[1, H, keys, D]``: the pool's slots of `runs`."""
    if len(runs) == 1:
        start, count = runs[0]
        return pool[:, start : start + count].unsqueeze(0)
    return torch.cat([pool[:, start : start + count] for start, count in runs], dim=1).unsqueeze(0)
