"""Which session leaves the device, and when."""

from decode_pool.residency import Residency, SessionKey
from eastwest.blocks import BlockHash
from kv_transfer.ledger import Owner, OwnerKind

IDLE = 1000


def rest(residency: Residency, name: str, now: int) -> SessionKey:
    key = SessionKey("salt", name)
    owner = Owner(OwnerKind.SESSION, f"{name}@{now}")
    residency.rest(key, owner, (BlockHash(name.encode()),), (1,), now)
    return key


def test_a_session_is_due_after_its_idle_time() -> None:
    residency = Residency(IDLE)
    key = rest(residency, "a", now=0)
    assert residency.due(IDLE - 1) is None
    due = residency.due(IDLE)
    assert due is not None
    assert due.key == key
    assert residency.next_due_ns() == IDLE


def test_an_active_session_is_not_due_until_it_is_idle_again() -> None:
    residency = Residency(IDLE)
    key = rest(residency, "a", now=0)
    residency.activate(key)
    assert residency.due(10 * IDLE) is None
    residency.deactivate(key, now_ns=10 * IDLE)
    assert residency.due(10 * IDLE) is None
    assert residency.due(11 * IDLE) is not None


def test_a_newer_turn_replaces_what_rested() -> None:
    residency = Residency(IDLE)
    key = rest(residency, "a", now=0)
    first = residency.due(IDLE)
    owner = Owner(OwnerKind.SESSION, "newer")
    former = residency.rest(key, owner, (), (), 5)
    assert former is first
    assert len(residency) == 1


def test_what_a_spill_still_reads_is_released_by_the_spill() -> None:
    residency = Residency(IDLE)
    key = rest(residency, "a", now=0)
    resting = residency.due(IDLE)
    assert resting is not None
    residency.spilling(resting)
    assert residency.rest(key, Owner(OwnerKind.SESSION, "newer"), (), (), 5) is None
    assert residency.spill_ended(resting, retry_ns=None) is True
    assert len(residency) == 1


def test_a_failed_spill_is_tried_again_later() -> None:
    residency = Residency(IDLE)
    rest(residency, "a", now=0)
    resting = residency.due(IDLE)
    assert resting is not None
    residency.spilling(resting)
    assert residency.due(IDLE) is None
    assert residency.spill_ended(resting, retry_ns=2 * IDLE) is False
    assert residency.due(2 * IDLE - 1) is None
    assert residency.due(2 * IDLE) is resting


def test_pressure_takes_the_longest_idle_and_active_ones_last() -> None:
    residency = Residency(IDLE)
    first = rest(residency, "a", now=0)
    second = rest(residency, "b", now=5)
    residency.activate(first)
    victim = residency.victim()
    assert victim is not None
    assert victim.key == second
    residency.drop(victim)
    victim = residency.victim()
    assert victim is not None
    assert victim.key == first


def test_a_worker_that_leaves_lets_nothing_rest() -> None:
    residency = Residency(IDLE)
    first = rest(residency, "a", now=0)
    residency.hasten(10)
    residency.idle_ns = 0
    due = residency.due(10)
    assert due is not None
    assert due.key == first
    residency.spilling(due)
    later = rest(residency, "b", now=20)
    due = residency.due(20)
    assert due is not None
    assert due.key == later
