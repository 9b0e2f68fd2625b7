"""Predictions are set right by what was measured, each worker's by its own."""

from __future__ import annotations

import pytest

from eastwest.clock import ns
from eastwest.messages import Prefilled, SequenceOutput
from eastwest.testing.builders import a_worker
from eastwest.types import FinishReason, Role, SampledToken
from router.attempt import Attempt
from router.fleet import Worker
from router.pace import NominalCosts, Pace
from router.placement import Placement

TOKEN = SampledToken(5)

LATER = ns(1e6)


def a_pair() -> tuple[Worker, Worker]:
    return (
        Worker(a_worker("p0", Role.PREFILL, step_tokens=100), 0),
        Worker(a_worker("d0", Role.DECODE), 0),
    )


def prefilled(pace: Pace, pair: tuple[Worker, Worker], seconds: float) -> None:
    attempt = Attempt("w", Placement(*pair, blocks=1), given_tokens=1000, resumed=False, tpot_s=0.1)
    event = Prefilled("w", TOKEN, None, 0, ns(seconds), computed_tokens=400, loaded_tokens=0)
    pace.prefilled(attempt, event, LATER)


def steps(pace: Pace, worker: Worker, gap_s: float, count: int, *, last: bool = False) -> None:
    output = SequenceOutput("w", (TOKEN,), FinishReason.LENGTH if last else None)
    for number in range(count):
        pace.stepped(worker, [output, output], ns(100 + number * gap_s))


def test_prompts_are_predicted_as_long_as_they_have_been() -> None:
    pace, pair = Pace(NominalCosts()), a_pair()
    prefill, decode = (worker.info for worker in pair)
    nominal = pace.prompt_s(prefill, 400, 600)
    for _ in range(200):
        prefilled(pace, pair, 3 * nominal)
    assert pace.prompt_s(prefill, 400, 600) == pytest.approx(3 * nominal, rel=0.05)
    assert pace.prompt_s(prefill, 800, 0) == pytest.approx(6 * nominal, rel=0.05)
    # Nothing was learned of others, nor of steps.
    assert pace.prompt_s(decode, 400, 600) == NominalCosts().prompt_s(decode, 400, 600)
    assert pace.factors(prefill)[1] == 1.0


@pytest.mark.parametrize("speed", [1e-3, 0.2, 50.0])
def test_the_scale_is_found_wherever_it_is(speed: float) -> None:
    pace, pair = Pace(NominalCosts()), a_pair()
    step_s = NominalCosts().step_s(pair[1].info, 2, 0)
    steps(pace, pair[1], step_s * speed, 400)
    assert pace.factors(pair[1].info)[1] == pytest.approx(speed, rel=0.05)


def loaded(pace: Pace, pair: tuple[Worker, Worker], seconds: float) -> None:
    placement = Placement(*pair, blocks=1, meet_tokens=200)
    attempt = Attempt("w", placement, given_tokens=1000, resumed=False, tpot_s=0.1)
    pace.prefilled(attempt, Prefilled("w", TOKEN, None, 0, ns(9.0), 600, 400, ns(seconds)), LATER)


def test_loading_is_predicted_to_take_as_long_as_it_did() -> None:
    pace, pair = Pace(NominalCosts()), a_pair()
    prefill, decode = (worker.info for worker in pair)
    nominal = NominalCosts().load_s(prefill, 400)
    for _ in range(300):
        loaded(pace, pair, 20 * nominal)
    assert pace.load_s(prefill, 400) == pytest.approx(20 * nominal, rel=0.05)
    assert pace.load_s(decode, 400) == NominalCosts().load_s(decode, 400)
    # A prompt that waited for what was loaded meanwhile says nothing of compute.
    assert pace.factors(prefill)[0] == 1.0


def test_what_is_not_loaded_for_it_was_slow_is_tried_again_some_day() -> None:
    pace, pair = Pace(NominalCosts()), a_pair()
    nominal = NominalCosts().load_s(pair[0].info, 400)
    for _ in range(300):
        loaded(pace, pair, 1000 * nominal)
    assert pace.load_s(pair[0].info, 400) > 500 * nominal
    placement = Placement(*pair, blocks=1, meet_tokens=1000)
    attempt = Attempt("w", placement, given_tokens=1000, resumed=False, tpot_s=0.1)
    for _ in range(200):
        pace.prefilled(attempt, Prefilled("w", TOKEN, None, 0, ns(1.0), 1000, 0), LATER)
    assert pace.load_s(pair[0].info, 400) < 2 * nominal


def test_what_a_worker_does_now_counts_more_than_what_it_did() -> None:
    pace, pair = Pace(NominalCosts()), a_pair()
    nominal = pace.prompt_s(pair[0].info, 400, 600)
    for factor in (4.0, 1.0):
        for _ in range(100):
            prefilled(pace, pair, factor * nominal)
    assert pace.factors(pair[0].info)[0] == pytest.approx(1.0, rel=0.1)


def test_time_without_sequences_or_with_prompts_is_no_step() -> None:
    pace, pair = Pace(NominalCosts()), a_pair()
    worker = pair[1]
    steps(pace, worker, 5.0, 50, last=True)  # each is the end of all that ran
    worker.prompt_tokens = 64
    steps(pace, worker, 5.0, 50)
    assert pace.factors(worker.info)[1] == 1.0


def test_a_worker_that_stood_still_is_hardly_slow() -> None:
    pace, pair = Pace(NominalCosts()), a_pair()
    worker = pair[1]
    step_s = NominalCosts().step_s(worker.info, 2, 0)
    steps(pace, worker, step_s, 100)
    output = SequenceOutput("w", (TOKEN,))
    pace.stepped(worker, [output, output], ns(100 + 99 * step_s + 30.0))
    assert 1.0 < pace.factors(worker.info)[1] < 1.2


def test_another_incarnation_is_not_judged_by_the_former() -> None:
    pace, pair = Pace(NominalCosts()), a_pair()
    prefilled(pace, pair, 60.0)
    assert pace.factors(pair[0].info)[0] > 2
    pace.forget(pair[0])
    assert pace.factors(pair[0].info)[0] == 1.0


def test_answers_are_expected_to_be_as_long_as_they_have_been() -> None:
    pace = Pace(NominalCosts())
    for _ in range(200):
        pace.ended(40)
    assert pace.usual_output == pytest.approx(40, abs=1)
