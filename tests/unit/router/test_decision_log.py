"""What the scheduler writes into a decision log."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from eastwest.config import RouterConfig
from eastwest.errors import Cancelled, ErrorCode, Phase
from eastwest.messages import Failed, FirstStep, Prefilled, Reserved, SequenceOutput, Stepped
from eastwest.testing.builders import a_load, a_ticket, a_worker, some_tokens
from eastwest.types import FinishReason, Role
from router.decision_lines import Encoder
from router.decision_log import WORKER_NUMBERS, Asked, Choice, Ended, Entry
from router.fleet import Worker
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request

MS = 1_000_000
# Of these a policy sees nothing: where they matter, the worker is not shown to it.
NOT_FOR_POLICIES = {
    "heard_ns", "liveness", "silent", "draining", "refused_until_ns", "orphans", "targets",
    "told_budget",
}  # fmt: skip


def logged(**config: Any) -> tuple[Scheduler, list[Entry]]:
    """A scheduler with one pair of workers, and what it writes."""
    entries: list[Entry] = []
    settings = RouterConfig.model_validate({"conditional": False, **config})
    scheduler = Scheduler(settings, write=entries.append)
    scheduler.worker_up(a_worker("p0", Role.PREFILL), 0)
    scheduler.worker_up(a_worker("d0"), 0)
    return scheduler, entries


def serve(scheduler: Scheduler, work: str, at_ms: int) -> None:
    """Room at once, the first token 40 ms later, two more 30 and 50 ms after it."""
    scheduler.event("d0", 1, Reserved(work, a_ticket(a_worker("d0")), 0, 0), at_ms * MS)
    (token,) = some_tokens(7)
    scheduler.event("p0", 1, Prefilled(work, token, None, 0, MS, 300, 0), (at_ms + 40) * MS)
    second = SequenceOutput(work, some_tokens(8), None, FirstStep(0, 0, 0, 0, 0))
    scheduler.event("d0", 1, Stepped((second,)), (at_ms + 70) * MS)
    third = SequenceOutput(work, some_tokens(9), FinishReason.LENGTH)
    scheduler.event("d0", 1, Stepped((third,)), (at_ms + 120) * MS)


def test_a_placement_and_how_the_request_went() -> None:
    scheduler, entries = logged()
    scheduler.event("d0", 1, a_load(free_blocks=90, cached_blocks=5, sessions_inactive=2), MS)
    scheduler.submit(a_request("r1", tokens=300, max_tokens=10, accepted_ns=3 * MS), 5 * MS)
    serve(scheduler, "r1#1", at_ms=15)
    asked, ended = entries
    assert isinstance(asked, Asked)
    assert (asked.request, asked.at_ns, asked.waited_ns, asked.waiting) == (1, 5 * MS, 2 * MS, 1)
    assert (asked.prompt_tokens, asked.output_tokens, asked.max_tokens) == (300, 0, 10)
    assert [sight.subject.info.worker_id for sight in asked.seen] == ["p0", "d0"]
    assert [sight.load for sight in asked.seen] == [None, (90, 5, 2)]
    assert asked.placed == Choice(prefill=0, decode=1, blocks=20)
    assert ended == Ended(1, 135 * MS, "completed", 3, 0, ttft_s=0.052, tpot_s=0.040)


def test_of_a_wait_only_the_first_answer_is_written() -> None:
    scheduler, entries = logged()
    for name in ("r1", "r2"):
        # Of two, one fits on the decode worker.
        scheduler.submit(a_request(name, tokens=10_000), 0)
    placed = [entry.placed is not None for entry in entries if isinstance(entry, Asked)]
    assert placed == [True, False]
    for now in (1, 2):
        scheduler.event("p0", 1, a_load(), now)
    assert len(entries) == 2
    # The first is lost; where it then waits anew, that is told, and not that the second still does.
    busy = Failed("r1#1", ErrorCode.OVERLOADED, "full", Phase.RESERVATION)
    scheduler.event("d0", 1, busy, 3)
    waits = [(e.request, e.placed) for e in entries[2:] if isinstance(e, Asked)]
    assert waits == [(1, None)]


def test_a_request_that_nobody_was_asked_for_leaves_nothing() -> None:
    scheduler, entries = logged(active_max=1)
    scheduler.submit(a_request("r1"), 0)
    scheduler.submit(a_request("r2"), 0)
    scheduler.cancel("r2", Cancelled("gone"), 1)
    scheduler.check_integrity()
    assert [type(entry) for entry in entries] == [Asked]
    scheduler.cancel("r1", Cancelled("gone"), 2)
    scheduler.check_integrity()
    assert entries[1:] == [Ended(1, 2, "cancelled", 0, 0, None, None)]


def test_a_new_incarnation_is_another_worker() -> None:
    scheduler, entries = logged()
    scheduler.submit(a_request("r1"), 0)
    scheduler.worker_up(a_worker("d0", epoch=2), 1)
    first, second = (entry for entry in entries if isinstance(entry, Asked))
    epochs = [[sight.subject.info.epoch for sight in asked.seen] for asked in (first, second)]
    assert epochs == [[1, 1], [1, 2]]
    assert first.seen[0].subject is second.seen[0].subject


def test_neither_prompts_nor_names_of_clients_are_in_the_lines() -> None:
    scheduler, entries = logged()
    request = a_request("private-1", tokens=300, output_tokens=987_654)  # its first token
    scheduler.submit(
        replace(request, salt="private-2", session_id="private-3", client_id="private-4"), 0
    )
    scheduler.cancel("private-1", Cancelled("private-5"), 1)
    encoder = Encoder()
    text = "".join(encoder.lines(entry) for entry in entries)
    assert '"prompt":300' in text
    assert "private" not in text
    assert "987654" not in text


def test_all_that_a_policy_may_read_of_a_worker_is_kept() -> None:
    names = {field.name for field in fields(Worker)}
    assert names == {*WORKER_NUMBERS, "info", "kind", "load"} | NOT_FOR_POLICIES
