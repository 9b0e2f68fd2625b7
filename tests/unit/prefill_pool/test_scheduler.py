"""Prompt batches: order of arrival, the token budget, and every token exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from prefill_pool.scheduler import Chunk, PromptScheduler


def test_a_long_prompt_is_cut_into_chunks_of_the_budget() -> None:
    scheduler = PromptScheduler(step_tokens=100)
    scheduler.add("a", total=250, done=0)
    seen = []
    while len(scheduler):
        (chunk,) = scheduler.plan()
        seen.append((chunk.start, chunk.stop))
        scheduler.advance(chunk)
    assert seen == [(0, 100), (100, 200), (200, 250)]


def test_short_prompts_ride_along_with_the_end_of_a_long_one() -> None:
    scheduler = PromptScheduler(step_tokens=100)
    scheduler.add("long", total=130, done=50)
    scheduler.add("short", total=15, done=0)
    scheduler.add("later", total=15, done=0)
    assert scheduler.plan() == [
        Chunk("long", 50, 130),
        Chunk("short", 0, 15),
        Chunk("later", 0, 5),
    ]


def test_planning_changes_nothing_until_the_chunks_have_run() -> None:
    scheduler = PromptScheduler(step_tokens=10)
    scheduler.add("a", total=25, done=0)
    assert scheduler.plan() == scheduler.plan()


def test_a_removed_prompt_is_not_planned() -> None:
    scheduler = PromptScheduler(step_tokens=10)
    scheduler.add("a", total=25, done=0)
    scheduler.add("b", total=5, done=0)
    scheduler.remove("a")
    scheduler.remove("a")
    assert scheduler.plan() == [Chunk("b", 0, 5)]
    assert scheduler.waiting_tokens == 5


@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 299)), min_size=1, max_size=12),
)
def test_every_token_runs_once_in_order_and_no_step_exceeds_the_budget(
    budget: int, prompts: list[tuple[int, int]]
) -> None:
    scheduler = PromptScheduler(budget)
    position = {}
    for index, (total, cached) in enumerate(prompts):
        done = min(cached, total - 1)
        scheduler.add(str(index), total, done)
        position[str(index)] = done
    while len(scheduler):
        chunks = scheduler.plan()
        assert 0 < sum(c.stop - c.start for c in chunks) <= budget
        for chunk in chunks:
            assert chunk.start == position[chunk.job_id] < chunk.stop
            position[chunk.job_id] = chunk.stop
            ended = scheduler.advance(chunk)
            assert ended == (chunk.stop == prompts[int(chunk.job_id)][0])
    assert [position[str(i)] for i in range(len(prompts))] == [total for total, _ in prompts]
