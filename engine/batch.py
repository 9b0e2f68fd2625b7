"""One engine step laid out as tensors.

The rows' tokens are laid end to end and cut into tiles of at most `TILE_ROWS`, which bounds the
memory of a step however many tokens it has. The model runs a tile through a whole layer before it
turns to the next one: a tile's queries may see its own keys and those of tiles before it, which is
all that causal attention asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from eastwest.ports import StepRow
from engine.attention import Segment, SegmentPlanner, Span, slot_runs

Segments = Mapping[int | None, Sequence[Segment]]  # by window

TILE_ROWS = 512
# Rows whose slots lie this many together on average are copied run by run.
_COPIED_RUN = 4


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens ``[first, first + count)`` of the batch; T counts them from 0 here.

    runs: ``(T index, first slot, count)`` of where their KV goes. slots: the same, ``[T]``, where
    the runs are so short that one scattered copy is quicker.
    sampled: T indices of the tokens that are a sampling row's last. segments: of all
    queries; last: of the sampled ones alone.
    """

    first: int
    count: int
    runs: tuple[tuple[int, int, int], ...]
    slots: torch.Tensor | None
    sampled: torch.Tensor
    segments: Segments
    last: Segments


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens, positions: ``[all tokens]``."""

    tokens: torch.Tensor
    positions: torch.Tensor
    tiles: tuple[Tile, ...]


class BatchPlanner:
    """Makes batches for one model. `like` has the activations' dtype and device."""

    def __init__(
        self,
        block_tokens: int,
        group: int,
        windows: frozenset[int | None],
        like: torch.Tensor,
    ) -> None:
        self._block_tokens = block_tokens
        self._group = group
        self._windows = windows
        self._like = like

    def plan(self, rows: Sequence[StepRow], tile_rows: int = TILE_ROWS) -> Batch:
        """Rows are checked: each has tokens, and blocks for all its positions. `tile_rows`: most
        tokens of a tile."""
        tokens: list[int] = []
        positions: list[int] = []
        for row in rows:
            end = row.start + len(row.tokens)
            assert row.tokens, "a row needs at least one token"
            assert row.start >= 0
            assert len(row.blocks) * self._block_tokens >= end, "a row's blocks must cover it"
            tokens += row.tokens
            positions += range(row.start, end)
        keys_max = 1 + max(positions)
        planners = {
            window: SegmentPlanner(self._block_tokens, self._group, window, keys_max, self._like)
            for window in self._windows
        }
        return Batch(
            self._indices(tokens),
            self._indices(positions),
            tuple(self._tile(*cut, planners) for cut in self._cuts(rows, tile_rows)),
        )

    def _cuts(
        self, rows: Sequence[StepRow], tile_rows: int
    ) -> Iterator[tuple[int, list[Span], list[Span]]]:
        """``(first token, spans, spans of sampled tokens)`` of each tile; spans count from 0."""
        first, count = 0, 0
        spans: list[Span] = []
        last: list[Span] = []
        for row in rows:
            done = 0
            while done < len(row.tokens):
                if count == tile_rows:
                    yield first, spans, last
                    first, count, spans, last = first + count, 0, [], []
                taken = min(tile_rows - count, len(row.tokens) - done)
                spans.append(Span(count, row.start + done, taken, row.blocks))
                count, done = count + taken, done + taken
            if row.sample is not None:
                last.append(Span(count - 1, row.start + done - 1, 1, row.blocks))
        yield first, spans, last

    def _tile(
        self,
        first: int,
        spans: Sequence[Span],
        last: Sequence[Span],
        planners: Mapping[int | None, SegmentPlanner],
    ) -> Tile:
        runs = tuple(
            (index, slot, count) for span in spans for index, slot, count in self._written(span)
        )
        return Tile(
            first,
            sum(span.count for span in spans),
            runs,
            self._scattered(runs, sum(span.count for span in spans)),
            self._indices([span.first for span in last]),
            {w: [s for span in spans for s in p.plan(span)] for w, p in planners.items()},
            {w: [s for span in last for s in p.plan(span)] for w, p in planners.items()},
        )

    def _scattered(self, runs: Sequence[tuple[int, int, int]], count: int) -> torch.Tensor | None:
        if count >= _COPIED_RUN * len(runs):
            return None
        return self._indices([s for _, slot, count in runs for s in range(slot, slot + count)])

    def _written(self, span: Span) -> Iterator[tuple[int, int, int]]:
        index = span.first
        end = span.start + span.count
        for slot, count in slot_runs(span.blocks, self._block_tokens, span.start, end):
            yield index, slot, count
            index += count

    def _indices(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._like.device)
