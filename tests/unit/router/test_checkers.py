"""The checkers notice what they are there to notice."""

from __future__ import annotations

import pytest

from eastwest.messages import Abort, Heartbeat, Reserve
from eastwest.testing.builders import a_worker
from eastwest.testing.checkers import ExactlyOnce, Reservations, check_timing
from eastwest.testing.simulated import Agenda
from eastwest.timing import SecondTokenParts, Timing, TtftParts
from eastwest.types import SamplingParams


def watching() -> ExactlyOnce:
    checker = ExactlyOnce(lambda _, position: position)
    checker.accepted("r1")
    checker.delivered("r1", [0, 1])
    return checker


@pytest.mark.parametrize("tokens", [[1], [3], [0], [2, 2]])
def test_a_lost_or_repeated_token_is_noticed(tokens: list[int]) -> None:
    with pytest.raises(AssertionError, match="lost, repeated or out of order"):
        watching().delivered("r1", tokens)


def test_a_second_end_is_noticed() -> None:
    checker = watching()
    checker.completed("r1", [0, 1])
    with pytest.raises(AssertionError, match="after its end"):
        checker.failed("r1")


def test_a_token_after_the_end_is_noticed() -> None:
    checker = watching()
    checker.failed("r1")
    with pytest.raises(AssertionError, match="after its end"):
        checker.delivered("r1", [2])


def test_an_output_that_was_not_delivered_is_noticed() -> None:
    with pytest.raises(AssertionError, match="other tokens"):
        watching().completed("r1", [0, 1, 2])


def test_a_request_without_an_end_is_noticed() -> None:
    checker = watching()
    with pytest.raises(AssertionError, match="never ended"):
        checker.check_all_ended()
    checker.completed("r1", [0])
    checker.check_all_ended()


def a_reserve(work_id: str) -> Reserve:
    return Reserve(work_id, "", "", (1,), SamplingParams(), 1, a_worker("p0").source(), 1.0)


def test_a_forgotten_reservation_is_noticed() -> None:
    checker = Reservations()
    checker.worker_up("d0", 1)
    checker.sent("d0", 1, a_reserve("r1#1"))
    with pytest.raises(AssertionError, match="never released"):
        checker.check_none_forgotten()
    checker.sent("d0", 1, Abort("r1#1"))
    checker.check_none_forgotten()
    checker.sent("d0", 1, a_reserve("r2#2"))
    checker.over("d0", 1, "r2#2")
    checker.check_none_forgotten()
    checker.sent("d0", 1, a_reserve("r3#3"))
    checker.worker_down("d0", 1)
    checker.check_none_forgotten()


def test_a_command_to_a_dead_incarnation_is_noticed() -> None:
    checker = Reservations()
    checker.worker_up("d0", 1)
    checker.worker_down("d0", 1)
    checker.worker_up("d0", 2)
    with pytest.raises(AssertionError, match="which is gone"):
        checker.sent("d0", 1, Heartbeat())


def test_a_timing_that_does_not_add_up_is_noticed() -> None:
    second = SecondTokenParts(1, 2, 3, 4)
    timing = Timing(TtftParts(1, 2, 3, 4, 5), second, 100)
    check_timing(timing, ttft_ns=15, second_ns=10)
    with pytest.raises(AssertionError, match="sum to 15"):
        check_timing(timing, ttft_ns=16, second_ns=10)
    with pytest.raises(AssertionError, match="sum to 10"):
        check_timing(timing, ttft_ns=15, second_ns=11)
    with pytest.raises(AssertionError, match="negative"):
        check_timing(Timing(TtftParts(-1, 2, 0, 0, 0), None, 1), ttft_ns=1, second_ns=None)


def test_the_agenda_keeps_time_and_then_order() -> None:
    agenda, done = Agenda(), []
    agenda.at(20, lambda: done.append(("c", agenda.now_ns)))
    agenda.at(10, lambda: done.append(("a", agenda.now_ns)))
    agenda.at(10, lambda: done.append(("b", agenda.now_ns)))
    agenda.after(31, lambda: done.append(("late", agenda.now_ns)))
    agenda.run_until(30)
    assert done == [("a", 10), ("b", 10), ("c", 20)]
    assert agenda.now_ns == 30
