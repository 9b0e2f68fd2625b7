"""The router's promises in random worlds.

1. Each request ends exactly once; its tokens come exactly once and in order, and are those of an
   undisturbed run, greedy or sampled.
2. No command goes to a dead incarnation, and no reservation is forgotten.
3. The parts of every timing sum exactly, and none is negative.
4. Queue and active requests stay within their bounds; load estimates equal their sums.
5. Once faults stop and workers are up, everything ends.
6. No death of a worker ends a request that has attempts left.
7. No drain of a worker ends a request, or costs it an attempt.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.config import RouterConfig
from eastwest.errors import ErrorCode, Unavailable
from eastwest.testing.simulated import Faults
from eastwest.types import Role
from router.requests import Outcome
from tests.property.router_world import RETRIABLE, Swarm, World

SEEDS = st.integers(0, 2**32)
P, D, A = Role.PREFILL, Role.DECODE, Role.AGGREGATED
FLEETS = st.sampled_from([(P, D), (P, P, D, D), (A,), (A, A), (P, D, A), (P, D, D, D)])
RATES = st.sampled_from([0.0, 0.0, 0.05, 0.3])
CHANCES = st.sampled_from([0.0, 0.0, 0.05, 0.3])


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, roles=FLEETS)
def test_every_request_completes_where_nothing_goes_wrong(
    seed: int, roles: tuple[Role, ...]
) -> None:
    world = World(seed, Swarm(roles))
    world.run()
    assert all(isinstance(result, Outcome) for result in world.results)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, roles=FLEETS, refuse=CHANCES)
def test_refusals_delay_requests_and_end_none(
    seed: int, roles: tuple[Role, ...], refuse: float
) -> None:
    world = World(seed, Swarm(roles, num_blocks=24, faults=Faults(refuse=refuse)))
    world.run()
    assert all(isinstance(result, Outcome) for result in world.results)


@settings(max_examples=200, deadline=None)
@given(
    seed=SEEDS,
    roles=FLEETS,
    blocks=st.sampled_from([24, 64]),
    faults=st.builds(
        Faults,
        refuse=CHANCES,
        fail=st.sampled_from([0.0, 0.02, 0.2]),
        codes=st.sampled_from([RETRIABLE, (*RETRIABLE, ErrorCode.INTERNAL)]),
    ),
    rates=st.tuples(RATES, RATES, RATES, RATES),
    chances=st.tuples(CHANCES, CHANCES, CHANCES),
)
def test_promises_hold_whatever_happens(
    seed: int,
    roles: tuple[Role, ...],
    blocks: int,
    faults: Faults,
    rates: tuple[float, float, float, float],
    chances: tuple[float, float, float],
) -> None:
    crash, hang, cut, drain = rates
    cancel, stop, hurry = chances
    swarm = Swarm(
        roles,
        num_blocks=blocks,
        faults=faults,
        crash_rate=crash,
        hang_rate=hang,
        cut_rate=cut,
        drain_rate=drain,
        cancel=cancel,
        stop=stop,
        hurry=hurry,
    )
    world = World(seed, swarm)
    world.run()
    allowed = {ErrorCode.UNAVAILABLE, ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED}
    allowed |= {*faults.codes} & {ErrorCode.INTERNAL}
    assert all(isinstance(r, Outcome) or r.code in allowed for r in world.results)


def a_deadly_world(seed: int, roles: tuple[Role, ...], rates: tuple[float, float, float]) -> World:
    """Long outputs, and as many attempts as it takes."""
    crash, hang, cut = rates
    config = RouterConfig(
        queue_max=64, active_max=8, attempts_max=1000, heartbeat_s=1.0, worker_timeout_s=3.0
    )
    return World(
        seed,
        Swarm(roles, output_max=300, crash_rate=crash, hang_rate=hang, cut_rate=cut, config=config),
    )


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, roles=FLEETS, rates=st.tuples(RATES, RATES, RATES))
def test_a_request_outlives_its_workers_whenever_they_die(
    seed: int, roles: tuple[Role, ...], rates: tuple[float, float, float]
) -> None:
    world = a_deadly_world(seed, roles, rates)
    world.run()
    assert all(isinstance(result, Outcome) for result in world.results)


@pytest.mark.parametrize("rates", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_such_worlds_do_move_requests_more_than_once(rates: tuple[float, float, float]) -> None:
    moves = []
    for seed in range(8):
        world = a_deadly_world(seed, (P, P, D, D), rates)
        world.run()
        moves += [r.usage.migrations for r in world.results if isinstance(r, Outcome)]
    assert max(moves) > 1


def a_draining_world(seed: int, roles: tuple[Role, ...], rate: float, refuse: float) -> World:
    """Long outputs, and one attempt each."""
    config = RouterConfig(
        queue_max=64, active_max=8, attempts_max=1, heartbeat_s=0.5, worker_timeout_s=3.0
    )
    faults = Faults(refuse=refuse)
    return World(seed, Swarm(roles, output_max=300, drain_rate=rate, faults=faults, config=config))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, roles=FLEETS, rate=st.sampled_from([0.1, 0.5, 2.0]), refuse=CHANCES)
def test_drains_end_no_request(
    seed: int, roles: tuple[Role, ...], rate: float, refuse: float
) -> None:
    world = a_draining_world(seed, roles, rate, refuse)
    world.run()
    assert all(isinstance(result, Outcome) for result in world.results)


def test_such_worlds_do_see_workers_leave_and_requests_move() -> None:
    worlds = [a_draining_world(seed, (P, P, D, D), 0.5, 0.0) for seed in range(8)]
    for world in worlds:
        world.run()
    results = [r for world in worlds for r in world.results if isinstance(r, Outcome)]
    assert sum(world.leaves for world in worlds) > 8
    assert sum(r.usage.migrations for r in results) > 8


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_seed_gives_the_same_world_again(seed: int) -> None:
    def ends() -> list[str]:
        faults = Faults(refuse=0.1, fail=0.05, codes=RETRIABLE)
        swarm = Swarm((P, P, D, D), requests=10, faults=faults, crash_rate=0.2)
        world = World(seed, swarm)
        world.run()
        return [r.message if isinstance(r, Unavailable) else repr(r) for r in world.results]

    assert ends() == ends()
