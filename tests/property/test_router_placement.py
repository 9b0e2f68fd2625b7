"""What placement keeps to, over any fleet; the last two for some policies alone.

1. It places where some pair fits, and only there.
2. A placement is a decode and a prefill worker of one kind, or one aggregated worker twice. By
   cost, unless roles are kept, aggregated workers are both, and one decode worker may be twice.
3. A decode worker is asked for more than its estimated room only where nothing else is asked of
   it, and never for more than all its blocks.
4. The order in which workers are listed does not matter.
5. By prefix: no decode worker has more sequences than the least loaded one and an eighth of what it
   can run, whatever it holds.
6. Least loaded: no decode worker that would fit has fewer sequences.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.config import RouterConfig
from eastwest.testing.builders import a_load, a_model, a_worker
from eastwest.types import Role, Slo
from router.fleet import Worker
from router.pace import NominalCosts, Pace
from router.placement import Placement, PlacementPolicy, can_serve, has_room
from router.policies import policy_of
from router.requests import Request
from tests.unit.router.builders import SomeKnown, a_request


@st.composite
def fleets(draw: st.DrawFn) -> list[Worker]:
    workers = []
    for index in range(draw(st.integers(0, 8))):
        role = draw(st.sampled_from(Role))
        model = a_model(fingerprint=draw(st.sampled_from(["a", "b"])))
        blocks = draw(st.integers(1, 64))
        worker = Worker(a_worker(f"w{index}", role, num_blocks=blocks, model=model), 0)
        if draw(st.booleans()):
            free = draw(st.integers(0, blocks))
            running, tokens = draw(st.integers(0, 3)), draw(st.integers(0, 100))
            sessions = draw(st.integers(0, 1))
            load = a_load(
                free_blocks=free,
                running=running,
                waiting_tokens=tokens,
                sessions_inactive=sessions,
            )
            worker.report(load)
        worker.prompt_tokens = draw(st.integers(0, 100))
        for _ in range(draw(st.integers(0, 2))):
            worker.expect(asked := draw(st.integers(1, 16)), draw(st.integers(1, 600)))
            if draw(st.booleans()):
                worker.grant(asked)
                if draw(st.booleans()):
                    worker.begin(draw(st.sampled_from([0.01, 0.1])))
        worker.budget = draw(st.sampled_from([64, 512, worker.info.step_tokens]))
        workers.append(worker)
    return workers


TARGETS = st.builds(Slo, st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
REQUESTS = st.builds(
    lambda request, slo, usual: replace(request, slo=slo, usual_slo=usual),
    st.builds(a_request, tokens=st.integers(1, 600), max_tokens=st.integers(1, 50)),
    st.just(Slo()) | TARGETS,
    st.none() | TARGETS,
)


NAMES = [f"w{index}" for index in range(8)]
KNOWN = st.builds(
    SomeKnown,
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 600)),
    stored=st.just(0) | st.integers(0, 600),
)
POLICIES = ("least_loaded", "prefix", "round_robin", "power_of_two", "cost", "conditional")


def a_policy(name: str) -> PlacementPolicy:
    policy = {"conditional": "cost"}.get(name, name)
    config = {"policy": policy, "conditional": name == "conditional"}
    return policy_of(RouterConfig.model_validate(config), Pace(NominalCosts()))


@pytest.mark.parametrize("name", POLICIES)
@given(fleets(), REQUESTS, KNOWN, st.randoms(use_true_random=False))
def test_placement_keeps_its_rules(
    name: str, workers: list[Worker], request: Request, known: SomeKnown, rng: random.Random
) -> None:
    fitting = _fitting(workers, request, alone=name == "conditional")
    placement = a_policy(name).place(request, workers, known)
    if placement is None:
        assert not fitting
        return
    prefill, decode = placement.prefill, placement.decode
    assert decode in fitting
    assert placement.blocks == decode.blocks_of(request) <= decode.info.num_blocks
    assert placement.blocks <= decode.room_blocks or not decode.asked_blocks
    bends = name == "conditional"
    assert prefill.kind == decode.kind
    if prefill is decode:
        assert decode.info.role is Role.AGGREGATED or (bends and decode.info.role is Role.DECODE)
    else:
        both = {Role.AGGREGATED} if bends else set()
        assert prefill.info.role in {Role.PREFILL, *both}
        assert decode.info.role in {Role.DECODE, *both}
    shuffled = rng.sample(workers, len(workers))
    assert a_policy(name).place(request, shuffled, known) == placement
    _check_balance(name, fitting, placement)


def _check_balance(name: str, fitting: list[Worker], placement: Placement) -> None:
    least = min(w.decoding_sequences for w in fitting)
    spread = {"least_loaded": 0, "prefix": placement.decode.info.running_max // 8}.get(name)
    if spread is not None:
        assert placement.decode.decoding_sequences <= least + spread


def _fitting(workers: list[Worker], request: Request, *, alone: bool) -> list[Worker]:
    """alone: whether a decode worker needs no other."""
    return [
        w
        for w in workers
        if w.decodes
        and has_room(w, w.blocks_of(request))
        and (alone or can_serve([w, *(p for p in workers if p.info.role is Role.PREFILL)]))
    ]
