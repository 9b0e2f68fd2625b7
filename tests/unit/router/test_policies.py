"""Which worker each policy takes, where the rules of `test_router_placement` leave a choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from eastwest.testing.builders import a_worker
from eastwest.types import Role
from router.fleet import Worker
from router.placement import Placement, PlacementPolicy
from router.policies import PowerOfTwo, PrefixAware, RoundRobin
from tests.unit.router.builders import SomeKnown, a_request


def a_fleet(
    prefill: int = 2, decode: int = 3, *, running_max: int = 64, step_tokens: int = 4096
) -> dict[str, Worker]:
    roles = [(f"p{n}", Role.PREFILL) for n in range(prefill)]
    roles += [(f"d{n}", Role.DECODE) for n in range(decode)]
    return {
        name: Worker(a_worker(name, role, running_max=running_max, step_tokens=step_tokens), 0)
        for name, role in roles
    }


def placed(
    policy: PlacementPolicy,
    fleet: Mapping[str, Worker],
    cached: Mapping[str, int] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[str, str]:
    """The pair that the policy takes among `names`, by default among all."""
    workers = [fleet[name] for name in names or fleet]
    placement = policy.place(a_request(), workers, SomeKnown(cached or {}))
    assert isinstance(placement, Placement)
    return placement.prefill.worker_id, placement.decode.worker_id


def test_by_prefix_each_phase_takes_who_holds_most() -> None:
    fleet = a_fleet()
    cached = {"p0": 16, "p1": 160, "d1": 32, "d2": 160}
    assert placed(PrefixAware(), fleet, cached) == ("p1", "d2")


def test_by_prefix_equals_are_chosen_by_load() -> None:
    fleet = a_fleet()
    fleet["d1"].sequences = fleet["d2"].sequences = 1
    fleet["p0"].prompt_tokens = 100
    assert placed(PrefixAware(), fleet, {"d1": 160, "d2": 160}) == ("p1", "d1")
    fleet["d1"].sequences = 2
    assert placed(PrefixAware(), fleet, {"d1": 160, "d2": 160}) == ("p1", "d2")


def test_by_prefix_a_hot_decode_worker_is_not_overrun() -> None:
    fleet = a_fleet(running_max=32)
    fleet["d2"].sequences = 4
    assert placed(PrefixAware(), fleet, {"d2": 160}) == ("p0", "d2")
    fleet["d2"].sequences = 5
    assert placed(PrefixAware(), fleet, {"d2": 160}) == ("p0", "d0")


def test_by_prefix_a_hot_prefill_worker_is_not_overrun() -> None:
    fleet = a_fleet(step_tokens=512)
    fleet["p1"].prompt_tokens = 512
    assert placed(PrefixAware(), fleet, {"p1": 160}) == ("p1", "d0")
    fleet["p1"].prompt_tokens = 513
    assert placed(PrefixAware(), fleet, {"p1": 160}) == ("p0", "d0")


def test_in_turn_every_worker_of_each_phase_comes_before_the_first_again() -> None:
    policy, fleet = RoundRobin(), a_fleet()
    pairs = [placed(policy, fleet) for _ in range(4)]
    assert pairs == [("p0", "d0"), ("p1", "d1"), ("p0", "d2"), ("p1", "d0")]


def test_in_turn_who_is_away_is_passed_over_and_has_its_turn_when_it_is_back() -> None:
    policy, fleet = RoundRobin(), a_fleet(prefill=1)
    assert placed(policy, fleet)[1] == "d0"
    assert placed(policy, fleet, names=["p0", "d0", "d2"])[1] == "d2"
    assert [placed(policy, fleet)[1] for _ in range(2)] == ["d0", "d1"]


def test_by_two_draws_the_most_loaded_of_three_is_never_taken_and_the_others_are() -> None:
    policy, fleet = PowerOfTwo(seed=3), a_fleet()
    fleet["d1"].sequences = 9
    taken = Counter(placed(policy, fleet)[1] for _ in range(60))
    assert taken["d1"] == 0
    assert min(taken["d0"], taken["d2"]) > 0


def test_by_two_draws_a_seed_gives_the_same_choices_again() -> None:
    def choices(seed: int) -> list[tuple[str, str]]:
        policy, fleet = PowerOfTwo(seed), a_fleet(prefill=5, decode=5)
        return [placed(policy, fleet) for _ in range(20)]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


def test_nobody_is_chosen_where_nobody_can_serve() -> None:
    for policy in (PrefixAware(), RoundRobin(), PowerOfTwo()):
        assert policy.place(a_request(), list(a_fleet(decode=0).values()), SomeKnown()) is None
