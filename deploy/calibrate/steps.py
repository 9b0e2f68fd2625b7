"""The engine's steps over a grid of prompts, decode batches, contexts and mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from deploy.calibrate.repeated import Work, typical_s
from eastwest.blocks import blocks_for
from eastwest.paged_kv import PagedKV
from eastwest.ports import Engine, SampleInput, StepRow
from eastwest.types import SamplingParams
from planner.cost import Row
from planner.fit import Measured

_GREEDY = SamplingParams(temperature=0.0)
# Every byte of the KV: a small number in each dtype, and as a scale.
_KV_BYTE = 0x3C
# A token of context costs a decode step about so much less than one more token to compute.
_CONTEXT_COST = 0.01

Rows = tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Steps to measure. prompts: `new` tokens after each of `past`. decode: batches at each of
    `contexts`. together: several prompts in one step, and prompts among decodes."""

    new: Sequence[int]
    past: Sequence[int]
    batches: Sequence[int]
    contexts: Sequence[int]
    together: Sequence[Rows] = ()

    def steps(self) -> list[Rows]:
        """All of them, about in order of growing cost."""
        prompts = [(Row(new, past),) for new in self.new for past in self.past]
        decodes = [(Row(1, past, count),) for count in self.batches for past in self.contexts]
        return sorted([*prompts, *decodes, *self.together], key=_cost)


QUICK = Grid(
    new=(32, 128, 512),
    past=(0, 1024),
    batches=(1, 4, 16),
    contexts=(128, 1024),
    together=((Row(32, 0, 4),), (Row(128, 0), Row(1, 1024, 8))),
)
FULL = Grid(
    new=(8, 32, 128, 512, 1024),
    past=(0, 1024, 4096),
    batches=(1, 4, 16, 32),
    contexts=(128, 1024, 4096),
    together=(
        (Row(32, 0, 4),),
        (Row(128, 0, 4),),
        (Row(32, 1024), Row(1, 1024, 8)),
        (Row(128, 0), Row(1, 1024, 8)),
        (Row(512, 0), Row(1, 128, 16)),
    ),
)


def fitting(
    steps: Sequence[Rows], context_tokens: int, kv_tokens: int, block_tokens: int
) -> list[Rows]:
    """Those within the model's context whose sequences have room in so much KV side by side."""
    return [
        rows
        for rows in steps
        if all(row.past + row.new <= context_tokens for row in rows)
        and blocks_of(rows, block_tokens) * block_tokens <= kv_tokens
    ]


def blocks_of(rows: Rows, block_tokens: int) -> int:
    """Blocks that a step's sequences take."""
    return sum(int(row.count) * blocks_for(_end(row), block_tokens) for row in rows)


def step_works(engine: Engine, steps: Sequence[Rows]) -> list[Work]:
    """What to time, one piece for each step. Overwrites the KV."""
    # Memory that was never written to is one shared page, and would be read from the cache.
    if isinstance(engine.kv, PagedKV):
        for plane in engine.kv.planes:
            plane[...] = _KV_BYTE
    return [partial(engine.step, step_rows(engine, rows)) for rows in steps]


def measured_steps(steps: Sequence[Rows], times: Sequence[Sequence[float]]) -> list[Measured]:
    """Those steps that have times, with what they take typically."""
    pairs = zip(steps, times, strict=True)
    return [Measured(rows, typical_s(taken)) for rows, taken in pairs if taken]


def step_rows(engine: Engine, rows: Rows) -> list[StepRow]:
    """The step that `rows` describe, each sequence in blocks of its own; what KV those hold is
    arbitrary, and so are the tokens."""
    made: list[StepRow] = []
    used = 0
    for row in rows:
        size = blocks_for(_end(row), engine.kv.block_tokens)
        for _ in range(int(row.count)):
            tokens = _tokens(int(row.new), len(made), engine.model.vocab_size)
            sample = SampleInput(_GREEDY, tokens, ()) if row.samples else None
            made.append(StepRow(tokens, int(row.past), range(used, used + size), sample))
            used += size
    assert used <= engine.kv.num_blocks, "more sequences than there is KV for"
    return made


def _tokens(count: int, sequence: int, vocab_size: int) -> list[int]:
    """Spread over the vocabulary, so that experts are used evenly."""
    return [(i * 7919 + sequence * 104729 + 3) % vocab_size for i in range(count)]


def _end(row: Row) -> int:
    return int(row.past + row.new)


def _cost(rows: Rows) -> float:
    return sum(row.count * (row.new + _CONTEXT_COST * row.past) for row in rows)
