"""Attention over paged KV is that of one plain softmax, and its masks have a bound."""

from __future__ import annotations

import pytest
import torch

from eastwest.layout import KVSpec, Shard
from engine.attention import MASK_ELEMENTS, QUERY_ROWS, Segment, SegmentPlanner, Span, attend
from engine.kv_memory import LayerKV, TorchKVMemory

BLOCK, DIM = 16, 4


def a_layer(heads: int, tokens: int) -> tuple[LayerKV, list[int]]:
    """Random keys and values, in blocks that are out of order."""
    spec = KVSpec(1, heads, DIM, DIM, "float32")
    count = -(-tokens // BLOCK)
    kv = TorchKVMemory(spec, Shard(range(1), range(heads)), count, BLOCK, torch.device("cpu"))
    rows = torch.randn(2, count * BLOCK, heads, DIM)
    kv.layers[0].store(None, [(0, 0, count * BLOCK)], rows[0], rows[1])
    return kv.layers[0], [*range(count // 2, count), *range(count // 2)]


def plainly(queries: torch.Tensor, kv: LayerKV, span: Span, window: int | None) -> torch.Tensor:
    """``[count, H * G * D]``, one span of `queries`."""
    runs = [(block * BLOCK, BLOCK) for block in span.blocks]
    keys, values = (plane[0] for plane in (kv.keys(runs), kv.values(runs)))
    part = queries[span.first : span.first + span.count]
    scores = torch.einsum("thgd,hsd->thgs", part, keys) * DIM**-0.5
    position = torch.arange(span.start, span.start + span.count)[:, None, None, None]
    key = torch.arange(keys.shape[1])
    hidden = key > position
    if window is not None:
        hidden = hidden | (key <= position - window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("thgs,hsd->thgd", weights, values).flatten(1)


def planned(spans: list[Span], group: int, window: int | None) -> list[Segment]:
    keys_max = max(span.start + span.count for span in spans)
    planner = SegmentPlanner(BLOCK, group, window, keys_max, torch.empty(0))
    return [segment for span in spans for segment in planner.plan(span)]


@pytest.mark.parametrize("window", [None, 40], ids=str)
@pytest.mark.parametrize(
    ("heads", "group", "cuts"),
    [
        (2, 3, [(0, 1), (0, 5), (0, 64), (7, 130), (300, 65), (299, 1), (250, 37)]),
        (1, 128, [(0, 70), (2040, 35), (4100, 19), (1000, 3), (5, 2)]),
        (1, 4096, [(0, 4), (2040, 3), (4032, 2)]),
    ],
    ids=str,
)
def test_every_query_sees_what_is_behind_it(
    heads: int, group: int, cuts: list[tuple[int, int]], window: int | None
) -> None:
    torch.manual_seed(0)
    kv, blocks = a_layer(heads, max(start + count for start, count in cuts))
    spans, first = [], 0
    for start, count in cuts:
        spans.append(Span(first, start, count, blocks))
        first += count
    queries = torch.randn(first, heads, group, DIM)
    output = attend(queries, kv, planned(spans, group, window))
    for span in spans:
        expected = plainly(queries, kv, span, window)
        ours = output[span.first : span.first + span.count]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_masks_stay_small_whatever_the_heads_and_keys() -> None:
    spans = [Span(0, start, 200, range(2000)) for start in (0, 1000, 15_000, 30_000)]
    spans += [Span(0, 16_000, count, range(2000)) for count in range(2, QUERY_ROWS)]
    for group in (3, 128, 1024):
        segments = planned(spans, group, None)
        masks = {id(s.mask): s.mask for s in segments if s.mask is not None}
        assert max(mask.numel() for mask in masks.values()) <= MASK_ELEMENTS
        assert len(masks) <= 7
        rows = {segment.rows for segment in segments if segment.count == QUERY_ROWS}
        assert rows == {3: {64}, 128: {64, 8, 4}, 1024: {64, 8, 1}}[group]
