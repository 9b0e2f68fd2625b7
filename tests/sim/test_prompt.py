"""A trace's prompt is the tokens that its blocks name, whichever way it is looked at."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from eastwest.blocks import block_hashes, hash_seed
from planner.traces import TraceRow
from sim.prompt import HASHED_TOKENS, TracePrompt

# Cut short in its last block; with tokens of its own behind its blocks; with none but those.
ROWS = [
    TraceRow(2 * HASHED_TOKENS + 7, 1, 0.0, (3, 9, 4)),
    TraceRow(2 * HASHED_TOKENS + 7, 1, 0.0, (3, 9)),
    TraceRow(3 * HASHED_TOKENS, 1, 0.0, (3,)),
    TraceRow(20, 1, 0.0),
]
CUTS = (0, 1, 5, HASHED_TOKENS, HASHED_TOKENS + 1, 2 * HASHED_TOKENS, 5000)


def written_out(number: int, row: TraceRow) -> tuple[int, ...]:
    tokens: list[int] = []
    for block in row.blocks:
        tokens += [100 + block] * HASHED_TOKENS
    tokens += [10_000_000 + number] * max(0, row.isl - len(tokens))
    return tuple(tokens[: row.isl])


@pytest.mark.parametrize("row", ROWS)
def test_it_is_what_it_would_be_if_it_were_written_out(row: TraceRow) -> None:
    prompt, tokens = TracePrompt.of(7, row), written_out(7, row)
    assert (len(prompt), tuple(prompt)) == (len(tokens), tokens)
    assert np.asarray(prompt, dtype="<u4").tolist() == list(tokens)
    output = (1, 2)
    assert prompt + output == tokens + output
    for at in (0, 1, len(tokens) // 2, len(tokens) - 1, -1):
        assert prompt[at] == tokens[at]
    with pytest.raises(IndexError):
        prompt[len(tokens)]
    for start, stop in [*pairwise(CUTS), (3, None), (None, 9), (9, 3)]:
        assert tuple(prompt[start:stop]) == tokens[start:stop]


@pytest.mark.parametrize("row", ROWS)
def test_its_blocks_have_the_names_that_its_tokens_give_them(row: TraceRow) -> None:
    seed = hash_seed("model", "")
    prompt = TracePrompt.of(7, row)
    assert block_hashes(prompt, 64, seed) == block_hashes(written_out(7, row), 64, seed)
