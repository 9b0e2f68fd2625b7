"""One request's state machine, told things directly."""

from __future__ import annotations

import pytest

from eastwest.errors import Cancelled, EastWestError, ErrorCode, Phase
from eastwest.messages import Failed, FirstStep, Prefilled, Reserved, SequenceOutput
from eastwest.testing.builders import a_ticket, a_worker, some_tokens
from eastwest.testing.checkers import check_timing
from eastwest.types import FinishReason, Role
from router.fleet import Worker
from router.lifecycle import Lifecycle, State
from router.placement import Placement
from router.requests import Action, Deliver, End, Marks, Outcome
from tests.unit.router.builders import a_request

(FIRST, SECOND) = some_tokens(1, 2)


class Life:
    """A lifecycle with its workers, and everything that came out of it."""

    def __init__(self, *, attempts: int = 3, aggregated: bool = False) -> None:
        self.d = Worker(a_worker("d0", Role.AGGREGATED if aggregated else Role.DECODE), 0)
        self.p = self.d if aggregated else Worker(a_worker("p0", Role.PREFILL), 0)
        request = a_request(tokens=64)
        self.machine = Lifecycle(request, attempts, Marks(0, admitted_ns=0), request.deadline_ns)
        self.out: list[Action] = []

    def placed(self, now_ns: int = 0) -> Life:
        blocks = self.d.blocks_of(self.machine.request)
        self.machine.place(Placement(self.p, self.d, blocks), "r1#1", now_ns, self.out)
        return self

    def reserved(self, now_ns: int = 0) -> Life:
        event = Reserved("r1#1", a_ticket(self.d.info), 0, 0)
        self.machine.reserved(self.d, event, now_ns, self.out)
        return self

    def prefilled(self, now_ns: int = 0, finish: FinishReason | None = None) -> Life:
        event = Prefilled("r1#1", FIRST, finish, 5, 10, 64, 0)
        self.machine.prefilled(self.p, event, now_ns, self.out)
        return self

    def stepped(self, now_ns: int = 0, finish: FinishReason | None = None) -> Life:
        output = SequenceOutput("r1#1", (SECOND,), finish, FirstStep(2, 3, 5, 9, 4096))
        self.machine.stepped(self.d, output, now_ns, self.out)
        return self

    def end(self) -> End:
        (end,) = [a for a in self.out if isinstance(a, End)]
        return end


def test_times_of_worker_and_router_are_fitted_into_one_sum() -> None:
    life = Life().placed(10).reserved(20).prefilled(50).stepped(70, FinishReason.LENGTH)
    result = life.end().result
    assert isinstance(result, Outcome)
    timing = result.marks.timing(delivered_ns=55)
    check_timing(timing, ttft_ns=55, second_ns=20)
    assert timing.ttft.queue_ns == 10 + 5
    assert timing.second is not None
    assert (timing.second.import_ns, timing.second.exposed_transfer_ns) == (2, 10)
    assert (result.transfer_bytes, result.transfer_ns) == (4096, 9)


def test_tokens_that_overtake_the_first_one_are_held() -> None:
    life = Life().placed(10).reserved(20).stepped(30, FinishReason.STOP)
    assert life.machine.state is State.PREFILLING
    assert not [a for a in life.out if isinstance(a, Deliver)]
    life.prefilled(50)
    assert [a.tokens for a in life.out if isinstance(a, Deliver)] == [(FIRST,), (SECOND,)]
    result = life.end().result
    assert isinstance(result, Outcome)
    check_timing(result.marks.timing(60), ttft_ns=60, second_ns=0)


@pytest.mark.parametrize("repeat", ["reserved", "prefilled"])
def test_a_repeated_answer_changes_nothing(repeat: str) -> None:
    life = Life().placed().reserved().prefilled().stepped()
    before = list(life.out)
    getattr(life, repeat)()
    assert life.out == before


def test_an_answer_from_the_wrong_worker_changes_nothing() -> None:
    life = Life().placed()
    before = list(life.out)
    life.machine.reserved(life.p, Reserved("r1#1", a_ticket(life.d.info), 0, 0), 0, life.out)
    assert life.out == before
    life.reserved()
    before = list(life.out)
    life.machine.prefilled(life.d, Prefilled("r1#1", FIRST, None, 0, 0, 64, 0), 0, life.out)
    life.machine.stepped(life.p, SequenceOutput("r1#1", (SECOND,)), 0, life.out)
    assert life.out == before
    life.prefilled()
    before = list(life.out)
    life.machine.stepped(life.p, SequenceOutput("r1#1", (SECOND,)), 0, life.out)
    assert life.out == before


def test_load_follows_the_state() -> None:
    life = Life()
    blocks = life.d.blocks_of(life.machine.request)

    def load() -> tuple[int, int, int]:
        return life.p.prompt_tokens, life.d.sequences, life.d.room_blocks

    assert load() == (0, 0, 1024)
    life.placed()
    assert load() == (64, 1, 1024 - blocks)
    life.reserved()
    assert load() == (64, 1, 1024 - blocks)
    life.prefilled()
    assert load() == (0, 1, 1024 - blocks)
    life.stepped(finish=FinishReason.LENGTH)
    assert load() == (0, 0, 1024)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_load_is_given_back_wherever_a_request_ends(steps: int) -> None:
    life = Life()
    for step in (life.placed, life.reserved, life.prefilled, life.stepped)[:steps]:
        step()
    life.machine.fail(Cancelled("gone"), life.out)
    assert (life.p.prompt_tokens, life.d.sequences, life.d.room_blocks) == (0, 0, 1024)
    error = life.end().result
    assert isinstance(error, Cancelled)
    phases = [Phase.QUEUE, Phase.RESERVATION, Phase.PREFILL, Phase.TRANSFER, Phase.DECODE]
    assert error.phase is phases[steps]


def test_a_phase_that_the_error_names_is_kept() -> None:
    life = Life().placed()
    life.machine.fail(Cancelled("gone", phase=Phase.DELIVERY), life.out)
    error = life.end().result
    assert isinstance(error, Cancelled)
    assert error.phase is Phase.DELIVERY


def test_one_error_may_end_several_requests_in_phases_of_their_own() -> None:
    error = Cancelled("shutting down", retry_after_s=2.0)
    lives = [Life().placed(), Life().placed().reserved()]
    for life in lives:
        life.machine.fail(error, life.out)
    ends = [life.end().result for life in lives]
    assert [e.phase for e in ends if isinstance(e, Cancelled)] == [Phase.RESERVATION, Phase.PREFILL]
    assert [e.retry_after_s for e in ends if isinstance(e, Cancelled)] == [2.0, 2.0]


def test_an_ended_request_cannot_end_again() -> None:
    life = Life().placed()
    life.machine.fail(Cancelled("gone"), life.out)
    with pytest.raises(AssertionError):
        life.machine.fail(Cancelled("gone"), life.out)


def test_a_refusal_is_not_an_attempt() -> None:
    life = Life(attempts=1).placed()
    refusal = Failed("r1#1", ErrorCode.OVERLOADED, "full", Phase.RESERVATION)
    life.machine.failed(life.d, refusal, life.out)
    assert life.machine.state is State.QUEUED
    assert life.machine.attempts_left == 1
    assert not life.machine.failed_on


def test_kv_that_moves_to_rest_after_the_end_is_known() -> None:
    assert Life().placed().reserved().prefilled(finish=FinishReason.STOP).machine.settling
    moved = Life().placed().reserved().prefilled().stepped(finish=FinishReason.STOP)
    assert not moved.machine.settling
    in_place = Life(aggregated=True).placed().reserved().prefilled(finish=FinishReason.STOP)
    assert not in_place.machine.settling


def test_a_worker_that_gives_more_than_was_asked_for_is_not_believed() -> None:
    life = Life().placed().reserved().prefilled()
    tokens = some_tokens(*range(2, 12))  # ten more, of ten in all
    life.machine.stepped(life.d, SequenceOutput("r1#1", tokens), 0, life.out)
    assert life.machine.state is State.QUEUED
    assert life.machine.failed_on == [life.d]
    assert sum(len(a.tokens) for a in life.out if isinstance(a, Deliver)) == 1
    life = Life(attempts=1).placed().reserved().prefilled()
    life.machine.stepped(life.d, SequenceOutput("r1#1", tokens), 0, life.out)
    error = life.end().result
    assert isinstance(error, EastWestError)
    assert error.code is ErrorCode.INTERNAL
    assert "more than max_tokens, 10" in error.message
