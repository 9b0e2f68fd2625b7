"""Who is next: fairly between tenants, by urgency within one, and nobody for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eastwest.clock import ns
from eastwest.config import RouterConfig
from eastwest.errors import EastWestError, Overloaded, Phase
from eastwest.messages import Prefilled, Reserved
from eastwest.testing.builders import a_ticket, a_worker, some_tokens
from eastwest.types import FinishReason, Role, Slo
from router.fair_queue import AGEING_S, PASSES_MAX, FairQueue
from router.lifecycle import Lifecycle
from router.requests import Action, End, Marks, Request
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request


def a_life(
    name: str, tenant: str = "", *, priority: int = 0, tokens: int = 300, accepted_ns: int = 0
) -> Lifecycle:
    request = a_request(name, tokens=tokens, accepted_ns=accepted_ns)
    request = replace(request, salt=tenant, priority=priority)
    return Lifecycle(request, 3, Marks(0), request.deadline_ns)


def served_in_order(queue: FairQueue) -> list[str]:
    """All that wait, as they are served one after the other."""
    order = []
    while (life := next(queue.candidates(), None)) is not None:
        queue.take(life)
        queue.check_integrity()
        order.append(life.request.request_id)
    return order


def test_a_flood_of_one_tenant_does_not_hold_back_another() -> None:
    queue = FairQueue()
    for i in range(100):
        queue.enter(a_life(f"flood{i}", "a"))
    queue.enter(a_life("late", "b"))
    assert served_in_order(queue).index("late") <= 1


def test_tokens_count_and_not_requests() -> None:
    queue = FairQueue()
    for i in range(40):
        queue.enter(a_life(f"long{i}", "a", tokens=4000))
        queue.enter(a_life(f"short{i}", "b", tokens=400))
    first = served_in_order(queue)[:33]
    longs = sum(1 for name in first if name.startswith("long"))
    # 4,000 and 400 prompt tokens, and the usual answer each: 7.8 short ones for each long one.
    assert 3 <= longs <= 5


def test_answers_are_charged_as_they_turn_out() -> None:
    queue = FairQueue()
    talker, listener = a_life("talker", "a", tokens=100), a_life("listener", "b", tokens=100)
    for life in (talker, listener):
        queue.enter(life)
        queue.take(life)
    talker._tokens.extend(some_tokens(*range(1000)))
    for life in (talker, listener):
        queue.end(life)
    for i in range(5):
        queue.enter(a_life(f"a{i}", "a", tokens=100))
        queue.enter(a_life(f"b{i}", "b", tokens=100))
    assert served_in_order(queue)[:5] == [f"b{i}" for i in range(5)]


def test_idleness_saves_up_nothing() -> None:
    queue = FairQueue()
    for i in range(50):
        life = a_life(f"busy{i}", "a")
        queue.enter(life)
        queue.take(life)
        queue.end(life)
    for i in range(10):
        queue.enter(a_life(f"a{i}", "a"))
        queue.enter(a_life(f"b{i}", "b"))
    order = served_in_order(queue)
    assert sum(1 for name in order[:10] if name.startswith("a")) >= 4


def test_more_urgent_first_within_a_tenant_and_waiting_makes_urgent() -> None:
    queue = FairQueue()
    queue.enter(a_life("old", priority=0, accepted_ns=0))
    queue.enter(a_life("urgent", priority=2, accepted_ns=ns(AGEING_S)))
    queue.enter(a_life("too late", priority=2, accepted_ns=ns(3 * AGEING_S)))
    assert served_in_order(queue) == ["urgent", "old", "too late"]


def test_what_came_back_is_first_and_charged_once() -> None:
    queue = FairQueue()
    lost = a_life("lost", "a")
    queue.enter(lost)
    queue.take(lost)
    queue.enter(a_life("b", "b"))
    queue.reenter(lost)
    assert served_in_order(queue) == ["lost", "b"]
    queue.end(lost)
    queue.check_integrity()


def test_a_request_is_passed_by_so_often_and_no_more() -> None:
    queue = FairQueue()
    large = a_life("large", "a")
    queue.enter(large)
    for i in range(PASSES_MAX + 5):
        queue.enter(a_life(f"small{i}", "b"))
    for _ in range(PASSES_MAX):
        first, second, *_ = queue.candidates()
        assert {first, second} >= {large}
        small = second if first is large else first
        queue.take(small, [large])
    remaining = list(queue.candidates())
    assert remaining[-1] is large


def run_to_end(scheduler: Scheduler, out: list[Action], served: list[str], now: int) -> None:
    """Serve whatever was placed, each in one token, until nothing waits."""
    ticket = a_ticket(a_worker("d0"))
    while pending := list(scheduler._works):
        for work in pending:
            out += scheduler.event("d0", 1, Reserved(work, ticket, 0, 0), now)
            served.append(work.split("#")[0])
            done = Prefilled(work, some_tokens(1)[0], FinishReason.LENGTH, 0, 0, 1, 0)
            out += scheduler.event("p0", 1, done, now)
        scheduler.check_integrity()


def a_scheduler(**config: Any) -> Scheduler:
    scheduler = Scheduler(RouterConfig.model_validate({"conditional": False, **config}))
    scheduler.worker_up(a_worker("p0", Role.PREFILL), 0)
    scheduler.worker_up(a_worker("d0"), 0)
    return scheduler


def of(tenant: str, request: Request) -> Request:
    return replace(request, salt=tenant)


def endings(actions: list[Action]) -> dict[str, EastWestError]:
    return {
        a.request_id: a.result
        for a in actions
        if isinstance(a, End) and isinstance(a.result, EastWestError)
    }


def test_a_full_queue_makes_way_for_a_tenant_with_less_than_its_share() -> None:
    scheduler = a_scheduler(queue_max=10, active_max=1)
    for i in range(11):
        scheduler.submit(of("a", a_request(f"a{i}")), 0)
    with pytest.raises(Overloaded, match="10 requests are waiting"):
        scheduler.submit(of("a", a_request("one too many")), 0)
    out = scheduler.submit(of("b", a_request("b0")), 0)
    assert list(endings(out)) == ["a10"]
    assert isinstance(endings(out)["a10"], Overloaded)
    scheduler.check_integrity()
    for i in range(1, 5):
        scheduler.submit(of("b", a_request(f"b{i}")), 0)
    with pytest.raises(Overloaded):
        scheduler.submit(of("b", a_request("more than half")), 0)
    served: list[str] = []
    run_to_end(scheduler, [], served, 1)
    assert sorted(served) == [*(f"a{i}" for i in range(6)), *(f"b{i}" for i in range(5))]
    # Turn by turn, once the one that was being served is over.
    assert [name[0] for name in served[1:9]] in (list("babababa"), list("abababab"))


def one_a_second(**config: Any) -> tuple[Scheduler, int]:
    """Sixty requests, of which twenty were served in as many seconds; and the time."""
    scheduler = a_scheduler(active_max=1, **config)
    for i in range(60):
        scheduler.submit(a_request(f"r{i}"), 0)
    ticket, now = a_ticket(a_worker("d0")), 0
    for _ in range(20):
        now += ns(1.0)
        work = next(iter(scheduler._works))
        scheduler.event("d0", 1, Reserved(work, ticket, 0, 0), now)
        done = Prefilled(work, some_tokens(1)[0], FinishReason.LENGTH, 0, 0, 1, 0)
        scheduler.event("p0", 1, done, now)
    return scheduler, now


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    scheduler, now = one_a_second()
    hurried = a_request("hurried", accepted_ns=now, timeout_s=5.0)
    with pytest.raises(Overloaded, match="its turn is expected in 39") as refused:
        scheduler.submit(hurried, now)
    assert refused.value.phase is Phase.ADMISSION
    assert refused.value.retry_after_s is not None
    assert 30 <= refused.value.retry_after_s <= 60
    scheduler.submit(a_request("patient", accepted_ns=now, timeout_s=100.0), now)
    # Another tenant's turn comes soon.
    scheduler.submit(of("b", a_request("other", accepted_ns=now, timeout_s=5.0)), now)
    scheduler.check_integrity()


def test_a_first_token_that_comes_too_late_is_refused_at_once_where_that_is_wanted() -> None:
    slow = a_request("slow", accepted_ns=ns(20.0), timeout_s=100.0)
    scheduler, now = one_a_second()
    scheduler.submit(slow, now)
    scheduler, now = one_a_second(refuse_beyond="slo")
    with pytest.raises(Overloaded, match=r"at most 2\.0 s, the time its first token"):
        scheduler.submit(slow, now)
    scheduler.submit(replace(slow, slo=Slo(60.0, 0.1)), now)
    scheduler.check_integrity()
