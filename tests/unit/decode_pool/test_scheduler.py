"""Continuous batching: who runs, how sequences end."""

from decode_pool.scheduler import DecodeScheduler, Running
from eastwest.stopping import StopRule
from eastwest.types import FinishReason, SamplingParams


def a_sequence(request_id: str, *, max_tokens: int = 8, min_tokens: int = 0) -> Running:
    params = SamplingParams(temperature=0.0, min_tokens=min_tokens)
    rule = StopRule.of(params, eos_ids=(2,), max_tokens=max_tokens)
    return Running(request_id, (5, 6, 7), [10], (0,), params, rule)


def test_the_row_feeds_the_last_token_at_its_position() -> None:
    row = a_sequence("a").row()
    assert list(row.tokens) == [10]
    assert row.start == 3


def test_the_oldest_sequences_run_when_the_batch_is_full() -> None:
    scheduler = DecodeScheduler(running_max=2)
    for name in "abc":
        scheduler.add(a_sequence(name))
    assert [s.request_id for s in scheduler.plan()] == ["a", "b"]
    scheduler.remove("a")
    assert [s.request_id for s in scheduler.plan()] == ["b", "c"]


def test_an_end_token_ends_the_sequence() -> None:
    sequence = a_sequence("a")
    assert sequence.advance(11) is None
    assert sequence.advance(2) is FinishReason.STOP
    assert sequence.output == [10, 11, 2]


def test_max_tokens_ends_the_sequence() -> None:
    assert a_sequence("a", max_tokens=2).advance(11) is FinishReason.LENGTH


def test_each_step_moves_the_row_on_by_one() -> None:
    sequence = a_sequence("a")
    sequence.advance(11)
    row = sequence.row()
    assert (list(row.tokens), row.start) == ([11], 4)
    assert row.sample is not None
    assert list(row.sample.output) == [10, 11]


def test_ending_tokens_are_banned_before_min_tokens() -> None:
    sequence = a_sequence("a", min_tokens=2)
    sample = sequence.row().sample
    assert sample is not None
    assert list(sample.banned) == [2]
    sequence.output.append(11)
    sample = sequence.row().sample
    assert sample is not None
    assert list(sample.banned) == []


def test_kv_is_present_for_all_tokens_but_the_last() -> None:
    assert a_sequence("a").computed == 3
