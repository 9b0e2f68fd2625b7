"""Causal attention of a mixed batch over paged KV.

Queries are cut into segments of at most `QUERY_ROWS` consecutive tokens of one sequence. A segment
attends to its keys where they lie: a view of the pool where they are one run of slots, gathered
first where they are several. The query heads that share a KV head become further rows of one
product; a segment of many heads and keys is multiplied a few queries at a time, so that its mask
stays small. Nothing about a segment depends on the rest of the batch.

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
# Of one mask, at most; 64 MiB in float32.
MASK_ELEMENTS = 1 << 24


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

    runs: ``(first slot, count)`` in the order of positions. rows: queries of one product. mask:
    additive, ``[rows * G, keys + QUERY_ROWS or more]``, rows ordered (query, head), where the last
    query has `QUERY_ROWS` keys behind its own; one row for all heads where `rows` is 1; None where
    there is nothing to hide.
    """

    first: int
    count: int
    runs: tuple[tuple[int, int], ...]
    rows: int
    mask: torch.Tensor | None

    def mask_of(self, queries: range, keys: int) -> torch.Tensor | None:
        """For at most `rows` queries, counted within the segment, over all its keys."""
        if self.mask is None:
            return None
        height, width = self.mask.shape
        first = width - QUERY_ROWS - keys + self.count - queries.stop
        return self.mask[height - height * len(queries) // self.rows :, first : first + keys]


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
            rows = self._rows(count, end - begin)
            mask = self._mask(rows) if count > 1 else None
            runs = slot_runs(span.blocks, self._block_tokens, begin, end)
            segments.append(Segment(span.first + offset, count, runs, rows, mask))
        return segments

    def _rows(self, count: int, keys: int) -> int:
        """A power of two, so that few masks serve all segments."""
        rows = 1 << (count - 1).bit_length()
        while rows > 1 and rows * self._group * (keys + QUERY_ROWS) > MASK_ELEMENTS:
            rows //= 2
        return rows

    def _mask(self, rows: int) -> torch.Tensor:
        """For `rows` queries, over as many keys as segments of so many rows may have. For fewer of
        either a part of it serves, since only distances matter."""
        if rows not in self._masks:
            keys, device = self._keys_max, self._like.device
            if rows > 1:
                keys = min(keys, MASK_ELEMENTS // (rows * self._group) - QUERY_ROWS)
            key = torch.arange(keys + QUERY_ROWS, device=device)
            query = torch.arange(keys - rows, keys, device=device).unsqueeze(1)
            hidden = key > query
            if self._window is not None:
                hidden |= key <= query - self._window
            mask = torch.zeros(hidden.shape, dtype=self._like.dtype, device=device)
            mask.masked_fill_(hidden, float("-inf"))
            if rows > 1:
                mask = mask.repeat_interleave(self._group, dim=0)
            self._masks[rows] = mask
        return self._masks[rows]


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
        keys = kv.keys(segment.runs)
        values = kv.values(segment.runs) if kv.has_values else keys
        for done in range(0, segment.count, segment.rows):
            within = range(done, min(done + segment.rows, segment.count))
            mask, count = segment.mask_of(within, keys.shape[2]), len(within)
            part = queries[segment.first + done : segment.first + done + count]
            if count > 1:
                part = part.transpose(0, 1).reshape(1, heads, count * group, dim)
            out = F.scaled_dot_product_attention(part, keys, values, mask, scale=scale)
            if count > 1:
                out = out.view(heads, count, group, dim).transpose(0, 1)
            attended.append(out)
    return torch.cat(attended).view(-1, heads * group * dim)
