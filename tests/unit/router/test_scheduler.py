"""The scheduler's decisions over several requests and workers. `tests/transcripts` has the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from eastwest.clock import ns
from eastwest.config import RouterConfig
from eastwest.errors import (
    Cancelled,
    DeadlineExceeded,
    ErrorCode,
    InvalidArgument,
    Overloaded,
    Phase,
    Unavailable,
)
from eastwest.messages import (
    Failed,
    Prefill,
    Prefilled,
    Reserve,
    Reserved,
    SequenceOutput,
    Stepped,
    WorkerInfo,
)
from eastwest.testing.builders import a_load, a_model, a_ticket, a_worker, some_tokens
from eastwest.types import FinishReason, Role
from router.fleet import Worker
from router.placement import Known, Placement
from router.requests import Action, End, Outcome, Request, Send
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request


def a_scheduler(*workers: WorkerInfo, **config: float) -> Scheduler:
    """A scheduler that `workers` have connected to; by default one of each role."""
    scheduler = Scheduler(RouterConfig.model_validate({"conditional": False, **config}))
    for info in workers or (a_worker("p0", Role.PREFILL), a_worker("d0")):
        scheduler.worker_up(info, 0)
    return scheduler


def reserves(actions: Sequence[Action]) -> list[tuple[str, str]]:
    """Who is asked to reserve, and for which work."""
    return [
        (a.worker_id, a.command.request_id)
        for a in actions
        if isinstance(a, Send) and isinstance(a.command, Reserve)
    ]


def finish_first(scheduler: Scheduler, work_id: str, now_ns: int) -> list[Action]:
    """Take a request on p0 and d0 from its reservation to an end with its first token."""
    ticket = a_ticket(a_worker("d0"))
    scheduler.event("d0", 1, Reserved(work_id, ticket, 0, 0), now_ns)
    (token,) = some_tokens(0)
    prefilled = Prefilled(work_id, token, FinishReason.LENGTH, 0, 0, 300, 0)
    return scheduler.event("p0", 1, prefilled, now_ns)


def test_a_router_that_never_knew_a_worker_refuses_requests() -> None:
    scheduler = Scheduler(RouterConfig(conditional=False))
    with pytest.raises(Unavailable) as caught:
        scheduler.submit(a_request(), 0)
    assert caught.value.phase is Phase.ADMISSION


def test_requests_wait_for_workers_that_are_restarting() -> None:
    scheduler = a_scheduler()
    scheduler.worker_down("d0", 1, "stream broken", 0)
    assert scheduler.submit(a_request("r1"), 0) == []
    assert scheduler.loads().waiting == 1
    assert reserves(scheduler.worker_up(a_worker("d0", epoch=2), 1)) == [("d0", "r1#1")]


def test_requests_wait_where_only_one_role_is_up() -> None:
    scheduler = a_scheduler(a_worker("d0"))
    assert scheduler.submit(a_request("r1"), 0) == []
    assert reserves(scheduler.worker_up(a_worker("p0", Role.PREFILL), 1)) == [("d0", "r1#1")]


def test_a_refused_request_leaves_no_trace() -> None:
    scheduler = a_scheduler(queue_max=1, active_max=1)
    scheduler.submit(a_request("active"), 0)
    scheduler.submit(a_request("waiting"), 0)
    before = scheduler.loads()
    with pytest.raises(InvalidArgument, match="'active' is running"):
        scheduler.submit(a_request("active"), 0)
    with pytest.raises(Overloaded, match="1 requests are waiting; allowed: 1"):
        scheduler.submit(a_request("third"), 0)
    with pytest.raises(InvalidArgument, match="needs 1026 KV blocks; allowed: 1024"):
        scheduler.submit(a_request("huge", tokens=16400, max_tokens=2), 0)
    assert scheduler.loads() == before
    assert not scheduler.is_running("third")
    scheduler.check_integrity()


def test_a_waiting_request_fails_when_the_only_worker_that_could_hold_it_comes_back_smaller() -> (
    None
):
    scheduler = a_scheduler(active_max=1)
    scheduler.submit(a_request("r1"), 0)
    scheduler.submit(a_request("big", tokens=1000), 0)
    actions = scheduler.worker_up(a_worker("d0", epoch=2, num_blocks=32), 1)
    assert reserves(actions) == [("d0", "r1#2")]
    actions = scheduler.cancel("r1", Cancelled("gone"), 2)
    ends = [a.result for a in actions if isinstance(a, End) and a.request_id == "big"]
    assert [type(end) for end in ends] == [InvalidArgument]


def test_a_retry_hint_follows_the_pace_of_departures() -> None:
    scheduler = a_scheduler(queue_max=4, active_max=1)
    for number in range(5):
        scheduler.submit(a_request(f"r{number}"), 0)
    for number in range(1, 4):
        finish_first(scheduler, f"r{number - 1}#{number}", ns(10 * number))
    for number in range(5, 8):
        scheduler.submit(a_request(f"r{number}"), ns(30))
    with pytest.raises(Overloaded) as caught:
        scheduler.submit(a_request("r8"), ns(40))
    # Three have left in the last 30 seconds, and four wait.
    assert caught.value.retry_after_s == pytest.approx(40.0)


def test_no_more_than_active_max_are_served_at_once() -> None:
    scheduler = a_scheduler(active_max=2)
    asked = [reserves(scheduler.submit(a_request(f"r{n}"), 0)) for n in range(4)]
    assert asked == [[("d0", "r0#1")], [("d0", "r1#2")], [], []]
    assert (scheduler.loads().active, scheduler.loads().waiting) == (2, 2)
    assert reserves(finish_first(scheduler, "r0#1", 1)) == [("d0", "r2#3")]


def test_a_request_whose_turn_comes_after_its_deadline_is_not_begun() -> None:
    scheduler = a_scheduler(active_max=1)
    scheduler.submit(a_request("r1"), 0)
    scheduler.submit(a_request("late", timeout_s=1), 0)
    actions = scheduler.cancel("r1", Cancelled("gone"), ns(1))
    assert not reserves(actions)
    errors = [a.result for a in actions if isinstance(a, End) and a.request_id == "late"]
    assert [(type(e), e.phase) for e in errors if not isinstance(e, Outcome)] == [
        (DeadlineExceeded, Phase.QUEUE)
    ]


def test_load_spreads_over_both_pools() -> None:
    prefill = [a_worker(f"p{n}", Role.PREFILL) for n in range(3)]
    decode = [a_worker(f"d{n}") for n in range(2)]
    scheduler = a_scheduler(*prefill, *decode)
    commands: list[Action] = []
    for number in range(6):
        for worker_id, work_id in reserves(scheduler.submit(a_request(f"r{number}"), 0)):
            event = Reserved(work_id, a_ticket(decode[int(worker_id[1])]), 0, 0)
            commands += scheduler.event(worker_id, 1, event, 0)
    sent = [a for a in commands if isinstance(a, Send) and isinstance(a.command, Prefill)]
    assert Counter(a.worker_id for a in sent) == {"p0": 2, "p1": 2, "p2": 2}
    to = [a.command.ticket.worker_id for a in sent if isinstance(a.command, Prefill)]
    assert Counter(to) == {"d0": 3, "d1": 3}


def test_a_prefill_worker_with_less_to_compute_comes_first() -> None:
    scheduler = a_scheduler(
        a_worker("p0", Role.PREFILL), a_worker("p1", Role.PREFILL), a_worker("d0")
    )
    # Another router keeps p0 busy.
    scheduler.event("p0", 1, a_load(waiting_tokens=5000), 0)
    scheduler.submit(a_request("r1"), 0)
    actions = scheduler.event("d0", 1, Reserved("r1#1", a_ticket(a_worker("d0")), 0, 0), 0)
    assert [a.worker_id for a in actions if isinstance(a, Send)] == ["p1"]


def test_a_decode_worker_that_refuses_is_passed_over() -> None:
    scheduler = a_scheduler(a_worker("p0", Role.PREFILL), a_worker("d0"), a_worker("d1"))
    assert reserves(scheduler.submit(a_request("r1"), 0)) == [("d0", "r1#1")]
    refusal = Failed("r1#1", ErrorCode.OVERLOADED, "full", Phase.RESERVATION)
    assert reserves(scheduler.event("d0", 1, refusal, 0)) == [("d1", "r1#2")]
    assert reserves(scheduler.submit(a_request("r2"), 0)) == [("d1", "r2#3")]
    scheduler.event("d0", 1, a_load(), 1)
    assert reserves(scheduler.submit(a_request("r3"), 2)) == [("d0", "r3#4")]


def test_requests_of_a_dead_worker_return_to_the_queue_in_their_order() -> None:
    scheduler = a_scheduler(active_max=3)
    for number in range(5):
        scheduler.submit(a_request(f"r{number}"), 0)
    scheduler.worker_down("d0", 1, "stream broken", 1)
    assert scheduler.loads().waiting == 5
    again = reserves(scheduler.worker_up(a_worker("d0", epoch=2), 2))
    assert [work_id.partition("#")[0] for _, work_id in again] == ["r0", "r1", "r2"]


def test_a_policy_of_ones_own_decides() -> None:
    class Last:
        """The last of each role."""

        def place(
            self, request: Request, workers: Sequence[Worker], known: Known
        ) -> Placement | None:
            prefill = [w for w in workers if w.info.role is Role.PREFILL]
            decode = [w for w in workers if w.info.role is Role.DECODE]
            return Placement(prefill[-1], decode[-1], decode[-1].blocks_of(request))

    scheduler = Scheduler(RouterConfig(), Last())
    for info in (a_worker("p0", Role.PREFILL), a_worker("d0"), a_worker("d1")):
        scheduler.worker_up(info, 0)
    assert reserves(scheduler.submit(a_request("r1"), 0)) == [("d1", "r1#1")]


def test_workers_of_another_model_are_never_paired() -> None:
    other = a_model(fingerprint="other")
    scheduler = a_scheduler(
        a_worker("p0", Role.PREFILL), a_worker("d0", model=other), a_worker("d1")
    )
    assert reserves(scheduler.submit(a_request("r1"), 0)) == [("d1", "r1#1")]
    assert reserves(scheduler.submit(a_request("r2"), 0)) == [("d1", "r2#2")]


def test_an_outcome_tells_who_served_and_what_moved() -> None:
    scheduler = a_scheduler()
    scheduler.submit(a_request("r1", tokens=100, max_tokens=2), 0)
    scheduler.event("d0", 1, Reserved("r1#1", a_ticket(a_worker("d0")), 16, 32), 0)
    first, last = some_tokens(7, 8)
    scheduler.event("p0", 1, Prefilled("r1#1", first, None, 0, 0, 52, 0), 1)
    output = SequenceOutput("r1#1", (last,), FinishReason.LENGTH, None)
    end = scheduler.event("d0", 1, Stepped((output,)), 2)[-1]
    assert isinstance(end, End)
    assert isinstance(end.result, Outcome)
    assert (end.result.prefill_worker, end.result.decode_worker) == ("p0", "d0")
    assert end.result.tokens == (first, last)
    usage = end.result.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (100, 2)
    assert (usage.cached_tokens, usage.loaded_tokens, usage.computed_tokens) == (48, 32, 52)


def test_counters_tell_endings_apart() -> None:
    scheduler = a_scheduler()
    for number in range(3):
        scheduler.submit(a_request(f"r{number}"), 0)
    finish_first(scheduler, "r0#1", 1)
    scheduler.cancel("r1", Cancelled("gone"), 1)
    scheduler.cancel("r2", Cancelled("gone"), 1)
    counters = scheduler.loads().counters
    assert (counters.completed, counters.failed) == (1, {"cancelled": 2})
    counters.failed.clear()
    assert scheduler.loads().counters.failed == {"cancelled": 2}


def test_the_next_wakeup_is_the_earliest_of_deadlines_and_pulse() -> None:
    scheduler = Scheduler(RouterConfig(heartbeat_s=2.0, conditional=False))
    assert scheduler.next_wakeup_ns() is None
    scheduler.worker_up(a_worker("p0", Role.PREFILL), ns(1))
    assert scheduler.next_wakeup_ns() == ns(3)
    scheduler.submit(a_request("r1", timeout_s=2.5), ns(1))
    scheduler.tick(ns(2))
    assert scheduler.next_wakeup_ns() == ns(2.5)
    scheduler.tick(ns(2.5))
    assert scheduler.next_wakeup_ns() == ns(3)


def test_prompts_wait_in_the_router_rather_than_pin_memory_behind_a_busy_prefill_worker() -> None:
    workers = (a_worker("p0", Role.PREFILL, step_tokens=200), a_worker("d0"))
    scheduler = a_scheduler(*workers)
    asked = [reserves(scheduler.submit(a_request(name, tokens=300), 0)) for name in ("a", "b", "c")]
    assert [len(a) for a in asked] == [1, 1, 0]
    assert scheduler.loads().waiting == 1
    out = finish_first(scheduler, asked[0][0][1], 1)
    assert [name for name, _ in reserves(out)] == ["d0"]
