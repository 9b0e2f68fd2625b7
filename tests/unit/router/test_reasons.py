"""The sentence that says why, for each thing that can have decided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eastwest.explanation import Decision, Prediction, WorkerEstimate
from eastwest.types import Role
from router.reasons import reason

BETTER = Prediction("p1", "d0", 1024, 0.020, 0.100, 0.0, 0.030, 0.5, 0.1, chosen=True)
WORSE = Prediction("p0", "d0", 0, 0.060, 0.400, 0.0, 0.030, 0.9, 0.3, chosen=False)


def a_decision(**changes: Any) -> Decision:
    decision = Decision(
        at_s=0.0, waiting=1, given_tokens=1300, prefill="p1", decode="d0", blocks=90,
        prefill_known_tokens=0, decode_known_tokens=0, lender="", reason="", predictions=(),
        left_out=0, workers=(), workers_up=4,
    )  # fmt: skip
    return replace(decision, **changes)


def worker(name: str, role: Role, waiting: int = 0, sequences: int = 0, known: int = 0) -> Any:
    return WorkerEstimate(name, 1, role, waiting, sequences, 0, 100, known)


def test_what_speaks_for_the_pair_is_said_with_numbers() -> None:
    said = reason("cost", a_decision(predictions=(BETTER, WORSE)))
    assert said == (
        "p1 with d0 at 0.60, p0 with d0 at 1.20 (less is better): p1 has 1,024 of 1,300 tokens, "
        "its queue is 40.0 ms shorter than that of p0 and p1 needs 300 ms less for the prompt"
    )


def test_what_speaks_against_it_is_said_too() -> None:
    slower = replace(BETTER, step_s=0.0352, decode="d1")
    said = reason("cost", a_decision(decode="d1", predictions=(slower, WORSE)))
    assert said.endswith("; against it, a step of d1 is 5.2 ms longer")


def test_a_better_pair_that_takes_no_prompt_is_named() -> None:
    best, taken = replace(WORSE, own=0.1, others=0.0), BETTER
    busy = worker("p0", Role.PREFILL, waiting=4096)
    decision = a_decision(predictions=(best, taken), workers=(busy,))
    assert reason("cost", decision) == (
        "p1 with d0 at 0.60 is the best that takes a prompt now; p0 with d0 would be at 0.10, but "
        "p0 has 4,096 tokens waiting"
    )


def test_an_only_pair_and_an_even_one() -> None:
    assert reason("cost", a_decision(predictions=(BETTER,))) == (
        "p1 with d0 was the only pair with room, p1 has 1,024 of 1,300 tokens"
    )
    even = replace(BETTER, known_tokens=0)
    other = replace(even, prefill="p2", chosen=False)
    said = reason("cost", a_decision(predictions=(even, other)))
    assert said.endswith("alike in every part, so that names decide")


def test_a_decode_worker_that_prefills_by_itself() -> None:
    alone = replace(BETTER, prefill="d0", known_tokens=0, others=0.0)
    said = reason("cost", a_decision(prefill="d0", predictions=(alone, WORSE)))
    assert said.startswith("d0 alone at 0.50, p0 with d0 at 1.20")
    assert "others lose 0.30 less of their targets" in said


WORKERS = (
    worker("p1", Role.PREFILL, waiting=10, known=1024),
    worker("d0", Role.DECODE, sequences=3, known=512),
    worker("p0", Role.PREFILL, waiting=700),
    worker("d1", Role.DECODE, sequences=5),
)


def test_loads_decide_where_nothing_is_predicted() -> None:
    assert reason("least_loaded", a_decision(workers=WORKERS)) == (
        "d0 has the fewest sequences (3; d1 has 5); "
        "p1 has the fewest prompt tokens waiting (10; p0 has 700)"
    )


def test_by_prefix_what_is_cached_comes_first() -> None:
    said = reason("prefix", a_decision(workers=WORKERS))
    assert said.startswith("p1 has 1,024 of 1,300 tokens and d0 has 512 of 1,300 tokens; d0 has")
    bare = tuple(replace(w, known_tokens=0) for w in WORKERS)
    said = reason("prefix", a_decision(workers=bare))
    assert said.startswith("nobody that is not much busier has any of the prompt; ")


def test_turns_and_draws() -> None:
    assert reason("round_robin", a_decision(workers=WORKERS)) == "it was the turn of p1 with d0"
    said = reason("power_of_two", a_decision(workers=WORKERS))
    assert said.startswith("d0 has the fewest sequences of those drawn (3; d1 has 5); p1 has")


def test_an_aggregated_worker_is_one_of_itself() -> None:
    both = worker("a0", Role.AGGREGATED, waiting=5, sequences=1)
    said = reason("least_loaded", a_decision(prefill="a0", decode="a0", workers=(both,)))
    assert said == "a0 is the only one and has 1 sequences"
