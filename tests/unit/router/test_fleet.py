"""The estimate of a worker's load: what it reported, and what was placed since."""

from __future__ import annotations

from eastwest.messages import Abort
from eastwest.testing.builders import a_load, a_worker
from eastwest.types import Liveness, Role
from router.fleet import Fleet, Worker
from router.requests import Action, Send
from tests.unit.router.builders import a_request


def test_an_unheard_worker_has_all_its_blocks() -> None:
    assert Worker(a_worker(num_blocks=100), 0).room_blocks == 100


def test_cached_blocks_are_room() -> None:
    worker = Worker(a_worker(num_blocks=100), 0)
    worker.report(a_load(free_blocks=10, cached_blocks=30, num_blocks=100))
    assert worker.room_blocks == 40


def test_a_report_includes_reservations_that_were_answered_and_no_others() -> None:
    worker = Worker(a_worker(num_blocks=100), 0)
    worker.expect(20, 100)
    worker.expect(5, 100)
    worker.grant(20)
    assert worker.room_blocks == 75
    worker.report(a_load(free_blocks=80, num_blocks=100))
    assert worker.room_blocks == 75
    worker.grant(5)
    assert worker.room_blocks == 75
    worker.report(a_load(free_blocks=75, num_blocks=100))
    assert worker.room_blocks == 75


def test_what_ends_makes_room_before_the_next_report() -> None:
    worker = Worker(a_worker(num_blocks=100), 0)
    worker.expect(20, 100)
    worker.grant(20)
    worker.report(a_load(free_blocks=80, num_blocks=100))
    worker.release(20, 100, granted=True)
    assert worker.room_blocks == 100
    worker.report(a_load(free_blocks=100, num_blocks=100))
    assert worker.room_blocks == 100


def test_there_is_never_more_room_than_blocks() -> None:
    worker = Worker(a_worker(num_blocks=100), 0)
    worker.expect(20, 100)
    worker.grant(20)
    worker.report(a_load(free_blocks=100, num_blocks=100))
    worker.release(20, 100, granted=True)
    assert worker.room_blocks == 100


def test_work_of_others_is_what_a_report_has_beyond_our_own() -> None:
    worker = Worker(a_worker(role=Role.AGGREGATED), 0)
    worker.prompt_tokens = 300
    worker.expect(10, 100)
    worker.report(a_load(running=4, waiting_tokens=1000))
    assert worker.waiting_tokens == 1000
    assert worker.decoding_sequences == 4
    worker.prompt_tokens = 0
    assert worker.waiting_tokens == 700
    worker.report(a_load(running=0, waiting_tokens=0))
    assert worker.waiting_tokens == 0
    assert worker.decoding_sequences == 1


def test_a_refusal_is_forgotten_with_changed_load_or_released_work() -> None:
    worker = Worker(a_worker(), 0)
    worker.report(a_load(free_blocks=5))
    worker.refused_until_ns = 100
    worker.report(a_load(free_blocks=5))
    assert worker.refused_until_ns == 100
    worker.report(a_load(free_blocks=6))
    assert worker.refused_until_ns == 0
    worker.expect(1, 100)
    worker.refused_until_ns = 100
    worker.release(1, 100, granted=False)
    assert worker.refused_until_ns == 0


def test_the_last_token_needs_no_block() -> None:
    worker = Worker(a_worker(block_tokens=16), 0)
    assert worker.blocks_of(a_request(tokens=16, max_tokens=1)) == 1
    assert worker.blocks_of(a_request(tokens=16, max_tokens=2)) == 2


def test_aborts_wait_for_a_silent_worker_and_are_dropped_for_a_dead_one() -> None:
    worker = Worker(a_worker(), 0)
    out: list[Action] = []
    worker.fall(silent=True)
    worker.abort("r1#1", out)
    assert not out
    worker.wake(out)
    assert out == [Send("d0", 1, Abort("r1#1"))]
    worker.fall(silent=True)
    worker.abort("r2#2", out)
    worker.fall(silent=False)
    worker.abort("r3#3", out)
    assert len(out) == 1
    assert not worker.orphans


def test_only_the_latest_incarnation_with_an_open_stream_is_current() -> None:
    fleet = Fleet()
    fleet.connect(a_worker(epoch=1), 0)
    first = fleet.get("d0")
    assert first is not None
    assert fleet.current("d0", 1) is first
    assert fleet.current("d0", 2) is None
    assert fleet.current("d1", 1) is None
    first.fall(silent=True)
    assert fleet.current("d0", 1) is first
    first.fall(silent=False)
    assert fleet.current("d0", 1) is None
    fleet.connect(a_worker(epoch=2), 0)
    assert fleet.current("d0", 1) is None
    assert [v.liveness for v in fleet.views()] == [Liveness.UP]
