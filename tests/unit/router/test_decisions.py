"""What is remembered of requests: within its bounds, and true to what the scheduler did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eastwest.clock import ns
from eastwest.config import RouterConfig
from eastwest.errors import ErrorCode, NotFound, Overloaded, Phase
from eastwest.explanation import Comparison, Explanation
from eastwest.messages import (
    Failed,
    FirstStep,
    Prefilled,
    Reserved,
    SequenceOutput,
    Stepped,
)
from eastwest.testing.builders import a_ticket, a_worker, some_tokens
from eastwest.types import FinishReason, Role
from router.decisions import DECISIONS_KEPT, PREDICTIONS_KEPT, WORKERS_KEPT
from router.explaining import explain
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request

MS = 1_000_000


def a_scheduler(prefill: int = 1, decode: int = 1, **config: Any) -> Scheduler:
    scheduler = Scheduler(RouterConfig.model_validate({"conditional": False, **config}))
    for index in range(prefill):
        scheduler.worker_up(a_worker(f"p{index}", Role.PREFILL), 0)
    for index in range(decode):
        scheduler.worker_up(a_worker(f"d{index}"), 0)
    return scheduler


def explained(scheduler: Scheduler, name: str, now_ns: int = 0, salt: str = "") -> Explanation:
    return explain(scheduler.decisions, salt, name, now_ns)


def serve(scheduler: Scheduler, work: str, prefill: str, decode: str, at_ms: int) -> None:
    """Room at once, the first token 40 ms later, two more 30 and 50 ms after it."""
    scheduler.event(decode, 1, Reserved(work, a_ticket(a_worker(decode)), 0, 0), at_ms * MS)
    (token,) = some_tokens(7)
    prefilled = Prefilled(work, token, None, 10 * MS, 30 * MS, 300, 0)
    scheduler.event(prefill, 1, prefilled, (at_ms + 40) * MS)
    first = FirstStep(2 * MS, 1 * MS, 20 * MS, transfer_ns=9 * MS, transfer_bytes=1)
    second = SequenceOutput(work, some_tokens(8), None, first)
    scheduler.event(decode, 1, Stepped((second,)), (at_ms + 70) * MS)
    third = SequenceOutput(work, some_tokens(9), FinishReason.LENGTH)
    scheduler.event(decode, 1, Stepped((third,)), (at_ms + 120) * MS)


def test_a_finished_request_shows_predicted_beside_measured() -> None:
    scheduler = a_scheduler()
    scheduler.submit(a_request("r1", tokens=300), 5 * MS)
    serve(scheduler, "r1#1", "p0", "d0", at_ms=15)
    seen = explained(scheduler, "r1", 200 * MS)
    assert (seen.state, seen.output_tokens, seen.ended_s) == ("completed", 3, 0.135)
    (decision,) = seen.decisions
    (prediction,) = decision.predictions
    assert (decision.prefill, decision.decode, decision.at_s) == ("p0", "d0", 0.005)
    parts = {c.part: c for c in seen.comparisons}
    assert parts["reservation"] == Comparison("reservation", None, 0.010)
    queue = parts["queue of the prefill worker"]
    assert (queue.predicted_s, queue.measured_s) == (prediction.queue_s, 0.010)
    prefill = parts["prefill"]
    assert (prefill.predicted_s, prefill.measured_s) == (prediction.prefill_s, 0.030)
    assert prefill.residual_s == pytest.approx(0.030 - prediction.prefill_s)
    assert parts["TTFT"].measured_s == 0.055
    assert parts["TTFT"].predicted_s == 0.005 + prediction.queue_s + prediction.prefill_s
    assert parts["transfer not hidden"].measured_s == pytest.approx(0.030 - 0.023)
    assert parts["TPOT"].measured_s == 0.040
    assert parts["TPOT"].predicted_s == prediction.step_s + prediction.transfer_s / 2


def test_what_policies_that_do_not_predict_went_by_is_told() -> None:
    scheduler = a_scheduler(prefill=2, decode=3, policy="least_loaded")
    scheduler.submit(a_request("r1"), 0)
    scheduler.submit(a_request("r2"), 0)
    decision = explained(scheduler, "r2").decisions[0]
    assert decision.predictions == ()
    figures = {w.worker_id: (w.sequences, w.waiting_tokens) for w in decision.workers}
    assert figures == {"p0": (0, 300), "p1": (0, 0), "d0": (1, 0), "d1": (0, 0), "d2": (0, 0)}
    assert decision.reason == (
        "d1 has 0 sequences, as has d2; p1 has the fewest prompt tokens waiting (0; p0 has 300)"
    )


def test_two_draws_show_who_was_drawn() -> None:
    scheduler = a_scheduler(prefill=9, decode=9, policy="power_of_two")
    scheduler.submit(a_request("r1"), 0)
    decision = explained(scheduler, "r1").decisions[0]
    assert len([w for w in decision.workers if w.role is Role.DECODE]) == 2
    assert len([w for w in decision.workers if w.role is Role.PREFILL]) == 2
    assert decision.workers_up == 18


def test_a_move_says_what_was_lost_and_goes_on() -> None:
    scheduler = a_scheduler(decode=2)
    scheduler.submit(a_request("r1"), 0)
    (token,) = some_tokens(7)
    scheduler.event("d0", 1, Reserved("r1#1", a_ticket(a_worker("d0")), 0, 0), 10 * MS)
    scheduler.event("p0", 1, Prefilled("r1#1", token, None, 0, 0, 300, 0), 20 * MS)
    scheduler.worker_down("d0", 1, "stream broken", 30 * MS)
    seen = explained(scheduler, "r1", 40 * MS)
    first, second = seen.decisions
    assert (seen.state, seen.migrations) == ("reserving", 1)
    assert (first.decode, first.lost_s) == ("d0", 0.030)
    assert "decode worker d0 is gone (stream broken)" in first.loss
    assert (second.decode, second.given_tokens, second.lost_s) == ("d1", 301, None)
    assert [w.worker_id for w in second.workers] == ["p0", "d1"]


def test_a_refusal_is_remembered_with_its_reason() -> None:
    scheduler = a_scheduler(queue_max=1, active_max=1)
    for name in ("r1", "r2"):
        scheduler.submit(a_request(name), 0)
    with pytest.raises(Overloaded):
        scheduler.submit(a_request("r3"), ns(1))
    seen = explained(scheduler, "r3", ns(2))
    assert (seen.state, seen.ended_s, seen.decisions) == ("refused", 1.0, ())
    assert seen.message == "1 requests are waiting; allowed: 1"
    assert explained(scheduler, "r2").state == "queued"


def test_an_error_that_ends_a_request_is_named() -> None:
    scheduler = a_scheduler(attempts_max=1)
    scheduler.submit(a_request("r1"), 0)
    failed = Failed("r1#1", ErrorCode.INTERNAL, "the step failed", Phase.RESERVATION)
    for attempt in (1, 2):
        if scheduler.is_running("r1"):
            scheduler.event("d0", 1, failed, attempt * MS)
    seen = explained(scheduler, "r1")
    assert seen.state == "failed"
    assert "internal: the step failed" in seen.message


def test_only_the_latest_requests_are_kept_running_or_not() -> None:
    scheduler = a_scheduler(explain_max=3, active_max=2)
    for number in range(5):
        scheduler.submit(a_request(f"r{number}"), 0)
        scheduler.check_integrity()
    assert len(scheduler.decisions) == 3
    with pytest.raises(NotFound, match="kept are the latest 3 requests of this router"):
        explained(scheduler, "r1")
    assert explained(scheduler, "r2").state == "queued"
    serve(scheduler, "r0#1", "p0", "d0", at_ms=1)  # ends, and is not remembered
    scheduler.check_integrity()


def test_nothing_is_kept_where_that_is_asked_for() -> None:
    scheduler = a_scheduler(explain_max=0)
    scheduler.submit(a_request("r1"), 0)
    assert len(scheduler.decisions) == 0
    with pytest.raises(NotFound):
        explained(scheduler, "r1")


def test_of_a_request_that_is_refused_on_and_on_a_bounded_part_is_kept() -> None:
    scheduler = a_scheduler(worker_timeout_s=1e6)
    scheduler.submit(a_request("r1"), 0)
    attempts = 3 * DECISIONS_KEPT
    for attempt in range(1, attempts):
        busy = Failed(f"r1#{attempt}", ErrorCode.OVERLOADED, "full", Phase.RESERVATION)
        scheduler.event("d0", 1, busy, ns(10 * attempt))
        scheduler.tick(ns(10 * attempt + 5))  # its refusal is forgotten by then
        scheduler.check_integrity()
    seen = explained(scheduler, "r1")
    assert len(seen.decisions) == DECISIONS_KEPT
    assert seen.decisions_left_out == attempts - DECISIONS_KEPT
    assert seen.decisions[0].at_s == 0.0
    assert seen.decisions[-1].lost_s is None


def test_of_a_large_fleet_a_bounded_part_is_kept() -> None:
    for policy in ("cost", "least_loaded", "prefix"):
        scheduler = a_scheduler(prefill=40, decode=40, policy=policy)
        scheduler.submit(a_request("r1"), 0)
        (decision,) = explained(scheduler, "r1").decisions
        assert len(decision.predictions) <= PREDICTIONS_KEPT
        assert len(decision.workers) <= 2 * WORKERS_KEPT
        assert decision.workers_up == 80
        assert {decision.prefill, decision.decode} <= {w.worker_id for w in decision.workers}
        scheduler.check_integrity()


def test_names_are_told_apart_by_tenant_and_the_latest_of_a_name_counts() -> None:
    scheduler = a_scheduler()
    for work, salt, tokens in (("w1", "a", 10), ("w2", "b", 20), ("w3", "a", 30)):
        request = replace(a_request(work, tokens=tokens), salt=salt, client_id="mine")
        scheduler.submit(request, 0)
    assert explained(scheduler, "mine", salt="a").prompt_tokens == 30
    assert explained(scheduler, "mine", salt="b").prompt_tokens == 20
    with pytest.raises(NotFound):
        explained(scheduler, "mine", salt="c")
