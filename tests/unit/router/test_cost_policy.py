"""Where the cost policy places, and why: one figure is made to decide at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from eastwest.clock import ns
from eastwest.messages import WorkerInfo
from eastwest.testing.builders import a_load, a_worker
from eastwest.types import Role, Slo
from router.cost_policy import DEFAULT_WEIGHTS, LeastCost, Weights
from router.fleet import Worker
from router.placement import Placement
from router.requests import Request
from tests.unit.router.builders import SomeKnown, a_request


@dataclass
class SomeCosts:
    """Seconds of a prompt token, of a step with so many sequences, and of a token that moves, is
    loaded or is lent."""

    token_s: float = 1e-3
    base_s: float = 1e-2
    sequence_s: float = 0.0
    moving_s: float = 0.0
    loading_s: float = 0.0
    fetching_s: float = 0.0
    usual_output: float = 10.0

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        return new_tokens * self.token_s

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        if not sequences:
            return 0.0
        return self.base_s + sequences * self.sequence_s + prompt_tokens * self.token_s

    def itl_s(self, worker: WorkerInfo, sequences: int, context_tokens: int) -> float:
        return self.step_s(worker, sequences, context_tokens)

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        return tokens * self.loading_s

    def fetch_s(self, lender: WorkerInfo, worker: WorkerInfo, tokens: int) -> float:
        return tokens * self.fetching_s

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        return tokens * self.moving_s


REQUEST = replace(a_request(tokens=1000), slo=Slo(10.0, 1.0))
PAIRS = {"p0": Role.PREFILL, "p1": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE}


def a_fleet(roles: Mapping[str, Role] = PAIRS, *, step_tokens: int = 4096) -> dict[str, Worker]:
    return {
        name: Worker(a_worker(name, role, step_tokens=step_tokens), 0)
        for name, role in roles.items()
    }


def decode(worker: Worker, sequences: int) -> None:
    """So many sequences decode there."""
    worker.sequences = 0
    for _ in range(sequences):
        worker.sequences += 1
        worker.begin(REQUEST.slo.tpot_s)


def place(
    fleet: Mapping[str, Worker],
    known: SomeKnown | None = None,
    *,
    request: Request = REQUEST,
    conditional: bool = False,
    costs: SomeCosts | None = None,
    weights: Weights = DEFAULT_WEIGHTS,
) -> Placement | None:
    policy = LeastCost(costs or SomeCosts(), conditional=conditional, weights=weights)
    return policy.place(request, list(fleet.values()), known or SomeKnown())


def placed(*args: object, **kwargs: object) -> tuple[str, str]:
    placement = place(*args, **kwargs)  # type: ignore[arg-type]
    assert placement is not None
    return placement.prefill.worker_id, placement.decode.worker_id


def test_a_prompt_goes_where_queue_and_what_is_left_of_it_take_least() -> None:
    fleet = a_fleet()
    assert placed(fleet, SomeKnown({"p1": 400})) == ("p1", "d0")
    fleet["p1"].prompt_tokens = 399
    assert placed(fleet, SomeKnown({"p1": 400})) == ("p1", "d0")
    fleet["p1"].prompt_tokens = 900
    assert placed(fleet, SomeKnown({"p1": 400})) == ("p0", "d0")


def test_what_only_the_store_has_is_as_near_as_it_takes_to_load() -> None:
    fleet, known = a_fleet(), SomeKnown({"p1": 400}, stored=640)
    assert placed(fleet, known, costs=SomeCosts(loading_s=1e-4)) == ("p1", "d0")
    fleet["p1"].prompt_tokens = 300
    assert placed(fleet, known, costs=SomeCosts(loading_s=1e-4)) == ("p0", "d0")
    assert placed(fleet, known, costs=SomeCosts(loading_s=1.0)) == ("p1", "d0")
    placement = place(fleet, known, costs=SomeCosts(loading_s=1e-4))
    assert placement is not None
    chosen = placement.considered[0]
    assert (chosen.known_tokens, round(chosen.prefill_s, 3)) == (640, 0.36)
    assert round(chosen.queue_s, 3) == 0.064


def test_it_decodes_where_the_step_is_shortest() -> None:
    fleet = a_fleet()
    fleet["d0"].sequences = 2
    assert placed(fleet, costs=SomeCosts(sequence_s=1e-3)) == ("p0", "d1")
    assert placed(fleet, costs=SomeCosts(sequence_s=0.0)) == ("p0", "d0")


def test_kv_that_no_compute_hides_counts_and_kv_that_is_there_does_not_move() -> None:
    fleet = a_fleet()
    fleet["d1"].sequences = 1
    costs = SomeCosts(token_s=1e-5, sequence_s=1e-4, moving_s=1e-3)
    assert placed(fleet, SomeKnown({"d1": 900}), costs=costs) == ("p0", "d1")
    hidden = replace(costs, token_s=2e-3)
    assert placed(fleet, SomeKnown({"d1": 900}), costs=hidden) == ("p0", "d0")


def test_an_idle_decode_worker_prefills_what_it_mostly_has_or_what_is_dear_to_move() -> None:
    fleet = a_fleet()
    short = replace(a_request(tokens=20), slo=REQUEST.slo)
    costs = SomeCosts(moving_s=1e-2)
    assert placed(fleet, request=short, costs=costs, conditional=True) == ("d0", "d0")
    assert placed(fleet, request=short, costs=costs) == ("p0", "d0")
    assert placed(fleet, SomeKnown({"d1": 990}), conditional=True) == ("d1", "d1")


def test_a_running_batch_is_not_stalled_for_a_prompt() -> None:
    fleet = a_fleet()
    for name in ("d0", "d1"):
        decode(fleet[name], 50)
    known = SomeKnown({"d1": 200})
    assert placed(fleet, known, conditional=True) == ("p0", "d0")
    fleet["d1"] = a_fleet()["d1"]
    assert placed(fleet, known, conditional=True) == ("d1", "d1")


def test_while_many_wait_for_prefill_workers_decode_workers_with_slack_help() -> None:
    fleet = a_fleet()
    for name in ("d0", "d1"):
        decode(fleet[name], 5)
    for name in ("p0", "p1"):
        fleet[name].prompt_tokens = 2000
    assert placed(fleet, conditional=True)[0] == "p0"
    assert placed(fleet, SomeKnown(waiting=500), conditional=True) == ("d0", "d0")


def test_waiting_for_a_busy_prefill_worker_is_better_than_a_stall_that_costs_more() -> None:
    fleet = a_fleet(step_tokens=512)
    for name in ("p0", "p1"):
        fleet[name].prompt_tokens = 1024  # two steps of it: no more is taken
    for name in ("d0", "d1"):
        decode(fleet[name], 60)
    assert place(fleet, conditional=True) is None
    fleet["p0"].prompt_tokens = 1023
    assert placed(fleet, conditional=True) == ("p0", "d0")


def test_what_comes_after_its_target_counts_more_than_what_comes_before() -> None:
    # Either the first token or the rest is slower; the tighter target decides which is worse.
    roles = {"a0": Role.AGGREGATED, "a1": Role.AGGREGATED}
    fleet = a_fleet(roles)
    fleet["a0"].prompt_tokens = 1000
    decode(fleet["a1"], 20)
    costs = SomeCosts(sequence_s=1e-2)
    patient = replace(REQUEST, slo=Slo(60.0, 0.1))
    assert placed(fleet, request=patient, costs=costs) == ("a0", "a0")
    hasty = replace(REQUEST, slo=Slo(1.5, 10.0))
    assert placed(fleet, request=hasty, costs=costs) == ("a1", "a1")


def test_how_much_more_what_is_late_counts_is_a_weight() -> None:
    fleet = a_fleet({"a0": Role.AGGREGATED, "a1": Role.AGGREGATED})
    fleet["a0"].prompt_tokens = 1000  # the first token would be late
    decode(fleet["a1"], 40)  # whose steps would all be longer
    costs, request = SomeCosts(sequence_s=1e-2), replace(REQUEST, slo=Slo(1.7, 1.0))
    assert placed(fleet, request=request, costs=costs) == ("a1", "a1")
    assert placed(fleet, request=request, costs=costs, weights=Weights(late=0)) == ("a0", "a0")


def test_lax_targets_of_its_own_do_not_make_the_time_of_others_cheap() -> None:
    fleet = a_fleet({"p0": Role.PREFILL, "d0": Role.DECODE})
    fleet["p0"].prompt_tokens = 500
    decode(fleet["d0"], 5)
    lax = replace(REQUEST, slo=Slo(1.0, 100.0))
    assert placed(fleet, request=lax, conditional=True) == ("d0", "d0")
    lax = replace(lax, usual_slo=Slo(1.0, 0.1))
    assert placed(fleet, request=lax, conditional=True) == ("p0", "d0")


def test_decode_workers_serve_alone_where_no_prefill_worker_is_left() -> None:
    fleet = a_fleet({"d0": Role.DECODE})
    assert place(fleet) is None
    assert placed(fleet, conditional=True) == ("d0", "d0")


def test_a_worker_without_room_is_no_candidate() -> None:
    fleet = a_fleet()
    fleet["d0"].report(a_load(free_blocks=3, running=1))
    fleet["d0"].sequences = 1
    assert placed(fleet) == ("p0", "d1")


def test_what_was_considered_is_told_best_first() -> None:
    fleet = a_fleet()
    fleet["p0"].prompt_tokens = 100
    placement = place(fleet, SomeKnown({"p1": 400}), conditional=True)
    assert placement is not None
    assert [c.score for c in placement.considered] == sorted(c.score for c in placement.considered)
    best = placement.considered[0]
    assert (best.prefill, best.decode) == (placement.prefill, placement.decode)
    assert (best.known_tokens, best.queue_s) == (400, 0.0)
    assert best.prefill_s == 0.6
    pairs = {(c.prefill.worker_id, c.decode.worker_id) for c in placement.considered}
    assert pairs == {(p, d) for p in ("p0", "p1") for d in ("d0", "d1")} | {
        ("d0", "d0"),
        ("d1", "d1"),
    }


def test_an_aggregated_worker_prefills_for_another_where_that_stalls_nobody() -> None:
    fleet = a_fleet({"a0": Role.AGGREGATED, "a1": Role.AGGREGATED})
    decode(fleet["a1"], 2)
    tight = replace(REQUEST, slo=Slo(10.0, 0.02))
    costs = SomeCosts(sequence_s=1e-3)
    fleet["a0"].sequences = 6  # which are not there yet
    assert placed(fleet, request=tight, costs=costs, conditional=True) == ("a0", "a1")
    assert placed(fleet, request=tight, costs=costs) in {("a0", "a0"), ("a1", "a1")}


def test_all_kinds_of_workers_feed_each_other_but_a_decode_worker_feeds_none() -> None:
    roles = {"a0": Role.AGGREGATED, "d0": Role.DECODE, "p0": Role.PREFILL}
    placement = place(a_fleet(roles), conditional=True)
    assert placement is not None
    pairs = {(c.prefill.worker_id, c.decode.worker_id) for c in placement.considered}
    assert pairs == {("p0", "d0"), ("p0", "a0"), ("a0", "d0"), ("a0", "a0"), ("d0", "d0")}
    placement = place(a_fleet(roles))
    assert placement is not None
    pairs = {(c.prefill.worker_id, c.decode.worker_id) for c in placement.considered}
    assert pairs == {("p0", "d0"), ("a0", "a0")}


def test_a_prompt_beside_decoding_takes_as_many_steps_as_the_budget_makes_of_it() -> None:
    fleet = a_fleet({"a0": Role.AGGREGATED})
    decode(fleet["a0"], 4)
    fleet["a0"].budget = 256
    costs = SomeCosts(base_s=0.01)
    placement = place(fleet, costs=costs)
    assert placement is not None
    (only,) = placement.considered
    # Four chunks of 250 tokens, to the next size.
    assert only.prefill_s == pytest.approx(4 * (0.01 + 256 * costs.token_s))


def test_what_the_prompts_before_have_had_of_the_worker_is_not_waited_for_again() -> None:
    fleet = a_fleet({"p0": Role.PREFILL, "d0": Role.DECODE})
    fleet["p0"].prompt_tokens = 500
    fleet["p0"].prompts_ns = ns(3.0)
    placement = place(fleet, SomeKnown(now_ns=ns(3.3)))
    assert placement is not None
    assert placement.considered[0].queue_s == pytest.approx(0.2)


def test_time_that_a_request_has_waited_counts_as_its_own() -> None:
    fleet = a_fleet({"p0": Role.PREFILL, "d0": Role.DECODE})
    fresh, late = place(fleet), place(fleet, SomeKnown(now_ns=ns(5.0)))
    assert fresh is not None
    assert late is not None
    assert late.considered[0].own > fresh.considered[0].own
    assert late.considered[0].prefill_s == fresh.considered[0].prefill_s
