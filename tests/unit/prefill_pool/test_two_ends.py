"""Both ends of a prompt. Invariants, whatever comes when:

1. Each token before `stop` is computed or loaded: by one of the two, and nothing twice.
2. Nothing is written where a chunk computes, and no chunk begins where something is written.
3. Nobody waits for ever: the prompt comes to its end when the loads have.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefill_pool.scheduler import Chunk, PromptScheduler
from prefill_pool.two_ends import TwoEnds

SIZE = 4


def chunk_of(scheduler: PromptScheduler) -> Chunk | None:
    return next(iter(scheduler.plan()), None)


def load(ends: TwoEnds, tokens: int) -> range:
    """One batch, at once."""
    free = ends.write(ends.next_span(tokens))
    ends.written()
    return free


def test_the_two_ends_meet_where_it_was_said() -> None:
    ends, scheduler = TwoEnds(8, 88, 40, SIZE), PromptScheduler(100)
    scheduler.add("a", 100, 8, ends)
    assert scheduler.waiting_tokens == 32 + 12
    chunk = chunk_of(scheduler)
    assert chunk == Chunk("a", 8, 40)
    assert load(ends, 20) == range(68, 88)
    scheduler.advance(chunk)
    # The rest is divided as the part so far was: 32 tokens were computed while 20 were loaded.
    late = chunk_of(scheduler)
    assert late == Chunk("a", 40, 56)
    assert load(ends, 20) == range(56, 68)
    assert ends.next_span(20) == range(56, 56)
    scheduler.advance(late)
    assert chunk_of(scheduler) == Chunk("a", 88, 100)


def test_what_is_all_loaded_lets_others_pass_and_is_not_computed() -> None:
    ends, scheduler = TwoEnds(0, 40, 0, SIZE), PromptScheduler(16)
    scheduler.add("a", 42, 0, ends)
    scheduler.add("b", 5, 0)
    assert scheduler.plan() == [Chunk("b", 0, 5)]
    assert scheduler.waiting_tokens == 2 + 5
    load(ends, 40)
    scheduler.meet("a")
    assert scheduler.plan() == [Chunk("a", 40, 42), Chunk("b", 0, 5)]


def test_loads_that_do_not_come_are_not_waited_for() -> None:
    ends, scheduler = TwoEnds(0, 40, 8, SIZE), PromptScheduler(16)
    scheduler.add("a", 42, 0, ends)
    assert ends.next_span(100) == range(8, 40)  # is being read, all the while
    seen = []
    while (chunk := chunk_of(scheduler)) is not None:
        seen.append((chunk.start, chunk.stop))
        if scheduler.advance(chunk):
            break
    assert seen == [(0, 8), (8, 24), (24, 40), (40, 42)]
    assert not ends.write(range(8, 40))


def test_what_is_read_late_is_used_as_far_as_nobody_computes_it() -> None:
    ends, scheduler = TwoEnds(0, 40, 8, SIZE), PromptScheduler(16)
    scheduler.add("a", 42, 0, ends)
    for _ in range(2):
        chunk = chunk_of(scheduler)
        assert chunk is not None
        scheduler.advance(chunk)
    assert chunk_of(scheduler) == Chunk("a", 24, 40)
    assert ends.write(range(8, 40)) == range(40, 40)
    ends, scheduler = TwoEnds(0, 40, 8, SIZE), PromptScheduler(10)
    scheduler.add("a", 42, 0, ends)
    for _ in range(2):
        chunk = chunk_of(scheduler)
        assert chunk is not None
        scheduler.advance(chunk)
    assert chunk == Chunk("a", 8, 18)
    assert chunk_of(scheduler) == Chunk("a", 18, 28)
    assert ends.write(range(8, 40)) == range(28, 40)
    scheduler.advance(Chunk("a", 18, 28))
    assert chunk_of(scheduler) is None  # it is being written
    ends.written()
    scheduler.meet("a")
    assert chunk_of(scheduler) == Chunk("a", 40, 42)


@pytest.mark.parametrize("writing", [False, True])
def test_what_was_not_loaded_is_computed(writing: bool) -> None:
    ends, scheduler = TwoEnds(0, 40, 0, SIZE), PromptScheduler(64)
    scheduler.add("a", 42, 0, ends)
    load(ends, 8)
    if writing:
        ends.write(ends.next_span(12))
    ends.end()
    scheduler.meet("a")
    chunk = chunk_of(scheduler)
    assert chunk == Chunk("a", 0, 32)
    scheduler.advance(chunk)
    assert chunk_of(scheduler) == Chunk("a", 40, 42)


@given(
    st.integers(0, 3), st.integers(1, 20), st.integers(0, 120), st.integers(1, 40),
    st.integers(1, 40), st.lists(st.sampled_from("prwe"), max_size=60),
)  # fmt: skip
def test_each_token_is_computed_or_loaded_once(
    before: int, stored: int, meet: int, step: int, batch: int, moves: list[str]
) -> None:
    start, stop = before * SIZE, (before + stored) * SIZE
    total = stop + 3
    ends, scheduler = TwoEnds(start, stop, meet, SIZE), PromptScheduler(step)
    scheduler.add("a", total, start, ends)
    owner: dict[int, str] = {}
    running: Chunk | None = None
    reading: range | None = None
    writing: range | None = None

    def put(tokens: range, who: str) -> None:
        assert not owner.keys() & set(tokens)
        owner.update(dict.fromkeys(tokens, who))

    def loads() -> None:
        nonlocal reading, writing
        if writing is not None:
            ends.written()
            put(writing, "loaded")
            scheduler.meet("a")
            writing = None
        elif reading is None:
            reading = ends.next_span(max(SIZE, batch // SIZE * SIZE))
            if not reading:
                ends.end()
        else:
            writing, reading = ends.write(reading), None
            if running is not None:
                assert not set(writing) & set(range(running.start, running.stop))

    for move in [*moves, *"prw" * 400]:
        if "a" not in scheduler:
            break
        if move == "p":
            if running is not None:
                put(range(running.start, running.stop), "computed")
                scheduler.advance(running)
                running = None
            if "a" in scheduler:
                running = chunk_of(scheduler)
                if running is not None and writing is not None:
                    assert not set(writing) & set(range(running.start, running.stop))
        elif move == "e":
            ends.end()
            scheduler.meet("a")
            reading = writing = None
        elif ends.loading:
            loads()
    assert sorted(owner) == list(range(start, total))
