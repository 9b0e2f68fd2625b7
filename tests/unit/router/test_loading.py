"""What is loaded, what is computed, and who loads."""

from __future__ import annotations

import pytest

from eastwest.testing.builders import a_worker
from eastwest.types import Role
from router.fleet import Worker
from router.loading import Loans, Way, leaves_stored, weigh
from tests.unit.router.builders import SomeKnown
from tests.unit.router.test_cost_policy import SomeCosts

INFO = a_worker("p0", Role.PREFILL, block_tokens=16)
GIVEN, STORED = 1000, 800


def way(loading_s: float, *, cached: int = 0, stored: int = STORED, queue_s: float = 0.0) -> Way:
    known = SomeKnown({"p0": cached}, stored=stored)
    return weigh(SomeCosts(loading_s=loading_s), Worker(INFO, 0), GIVEN, known, queue_s)


def test_a_quick_store_gives_all_that_it_has_and_a_slow_one_nothing() -> None:
    assert way(1e-6)[:4] == pytest.approx((0, STORED, 8e-4, 0.2))
    assert way(1.0)[:4] == pytest.approx((GIVEN, 0, 0.0, 1.0))


def test_in_between_both_ends_meet_where_they_come_at_the_same_time() -> None:
    both = way(1e-3)
    assert both.meet_tokens == 400
    assert both.present_tokens == 400
    assert both.wait_s == pytest.approx(0.0)
    assert both.seconds == pytest.approx(0.6)
    pure = [0.8 + 0.2, 1.0]
    assert both.seconds < min(pure)
    # Of what is in memory nothing is loaded or computed.
    assert way(1e-3, cached=192).meet_tokens == 496
    assert way(1e-3, cached=192).present_tokens == 192 + STORED - 496


def test_what_waits_before_it_gives_time_to_load() -> None:
    assert way(1e-3, queue_s=0.4).meet_tokens == 208
    assert way(1e-3, queue_s=1.0)[:4] == pytest.approx((0, STORED, 1.0, 0.2))


@pytest.mark.parametrize("stored", [0, 100, 320])
def test_where_the_store_has_no_more_than_memory_nothing_is_said(stored: int) -> None:
    assert way(1e-3, cached=320, stored=stored)[:4] == pytest.approx((0, 320, 0.0, 0.68))


@pytest.mark.parametrize("cached", [0, 304])
def test_no_way_is_slower_than_either_alone(cached: int) -> None:
    for exponent in range(-60, 1):
        loading_s = 10 ** (exponent / 10)
        seconds = way(loading_s, cached=cached).seconds
        alone = (STORED - cached) * loading_s + 0.2, (GIVEN - cached) * 1e-3
        assert seconds <= min(alone) + 1e-9


def test_a_decode_worker_loads_only_what_would_take_longer_to_move() -> None:
    prefill, decode = Worker(INFO, 0), Worker(a_worker("d0", Role.DECODE), 0)

    def leaves(moving_s: float, loading_s: float, cached: int = 0, prefill_s: float = 0.0) -> bool:
        known = SomeKnown({"d0": cached}, stored=STORED)
        costs = SomeCosts(moving_s=moving_s, loading_s=loading_s)
        return leaves_stored(costs, prefill, decode, GIVEN, known, prefill_s)

    assert leaves(1e-3, 1e-3)
    assert not leaves(1e-3, 0.9e-3)
    assert leaves(1e-3, 0.9e-3, prefill_s=1.0)
    assert leaves(1e-3, 1e-6, cached=STORED)
    known = SomeKnown(stored=STORED)
    assert leaves_stored(SomeCosts(moving_s=1.0), decode, decode, GIVEN, known, 0.0)


LENDER = Worker(a_worker("d1", Role.DECODE, block_tokens=16), 0)
OTHER = Worker(a_worker("d2", Role.DECODE, block_tokens=16), 0)


def lent_way(fetching_s: float, loading_s: float, *, lent: int, stored: int = STORED) -> Way:
    worker = Worker(INFO, 0)
    known = SomeKnown({"d1": lent}, stored=stored, workers=(worker, LENDER))
    costs = SomeCosts(loading_s=loading_s, fetching_s=fetching_s)
    return weigh(costs, worker, GIVEN, known, 0.0)


def test_what_another_worker_has_is_loaded_from_there_where_that_is_quickest() -> None:
    lent = lent_way(1e-6, 1.0, lent=960)
    assert lent[:4] == pytest.approx((0, 960, 9.6e-4, 0.04))
    assert lent.lender is LENDER
    assert lent_way(1e-6, 1e-6, lent=960).lender is LENDER  # it has more than the store
    assert lent_way(1e-3, 1e-6, lent=STORED).lender is None
    assert lent_way(1.0, 1.0, lent=960).meet_tokens == GIVEN
    assert lent_way(1.0, 1.0, lent=960).lender is None
    both = lent_way(1e-3, 1.0, lent=STORED)
    assert (both.lender, both.meet_tokens) == (LENDER, 400)


def test_nobody_lends_to_itself_or_in_another_form() -> None:
    worker = Worker(INFO, 0)
    larger = Worker(a_worker("d3", Role.DECODE, block_tokens=32), 0)
    held = [(worker, 960), (LENDER, 320), (OTHER, 640), (larger, 992)]
    loans = Loans(held)
    assert loans.to(worker) == (OTHER, 640)
    assert loans.to(OTHER) == (worker, 960)
    assert loans.to(larger) is None
    assert Loans([(worker, 960), (LENDER, 0)]).to(worker) is None
