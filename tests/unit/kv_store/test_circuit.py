"""When a store that does not answer is asked again."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.clock import ns
from kv_store.circuit import DOUBLINGS_MAX, JITTER, Admission, Circuit, CircuitState

untimed = settings(deadline=None)  # machines may be busy
RETRY_S = 1.0
LATEST_NS = ns(RETRY_S * (1 + JITTER))


def a_circuit() -> Circuit:
    return Circuit(RETRY_S, Random(0))


def opened(circuit: Circuit, now_ns: int = 0) -> Circuit:
    circuit.failed(circuit.admit(now_ns), now_ns)
    return circuit


def test_calls_pass_while_the_store_answers() -> None:
    circuit = a_circuit()
    for now_ns in range(5):
        admission = circuit.admit(now_ns)
        assert admission is Admission.PASS
        circuit.succeeded(admission)
    assert circuit.state is CircuitState.CLOSED


def test_one_failure_refuses_every_call_until_the_retry_time() -> None:
    circuit = opened(a_circuit())
    assert circuit.admit(1) is Admission.REFUSED
    assert circuit.admit(ns(RETRY_S) - 1) is Admission.REFUSED
    assert RETRY_S <= circuit.retry_in_s(0) <= RETRY_S * (1 + JITTER)


def test_one_probe_goes_through_and_none_beside_it() -> None:
    circuit = opened(a_circuit())
    assert circuit.admit(LATEST_NS) is Admission.PROBE
    assert circuit.admit(LATEST_NS) is Admission.REFUSED
    assert circuit.state is CircuitState.HALF_OPEN


def test_a_good_probe_closes_it() -> None:
    circuit = opened(a_circuit())
    circuit.succeeded(circuit.admit(LATEST_NS))
    assert circuit.state is CircuitState.CLOSED
    assert circuit.admit(LATEST_NS) is Admission.PASS


def test_an_abandoned_probe_leaves_its_place_to_the_next() -> None:
    circuit = opened(a_circuit())
    circuit.abandoned(circuit.admit(LATEST_NS))
    assert circuit.state is CircuitState.OPEN
    assert circuit.admit(LATEST_NS) is Admission.PROBE


def test_each_failed_probe_doubles_the_wait_up_to_a_bound() -> None:
    circuit = opened(a_circuit())
    now_ns = 0
    waits = [circuit.retry_in_s(now_ns)]
    for _ in range(DOUBLINGS_MAX + 3):
        now_ns += ns(waits[-1])
        admission = circuit.admit(now_ns)
        assert admission is Admission.PROBE
        circuit.failed(admission, now_ns)
        waits.append(circuit.retry_in_s(now_ns))
    for turn, wait_s in enumerate(waits):
        base_s = RETRY_S * 2 ** min(turn, DOUBLINGS_MAX)
        assert base_s <= wait_s <= base_s * (1 + JITTER)


def test_a_recovery_forgets_earlier_failures() -> None:
    circuit = opened(a_circuit())
    circuit.succeeded(circuit.admit(LATEST_NS))
    opened(circuit, LATEST_NS)
    assert circuit.retry_in_s(LATEST_NS) <= RETRY_S * (1 + JITTER)


def test_calls_from_before_it_opened_change_nothing() -> None:
    circuit = a_circuit()
    early, late = circuit.admit(0), circuit.admit(0)
    circuit.failed(early, 0)
    before_s = circuit.retry_in_s(0)
    circuit.failed(late, ns(0.5))
    assert circuit.retry_in_s(0) == pytest.approx(before_s)
    circuit.succeeded(late)
    assert circuit.state is CircuitState.OPEN


def test_waits_differ_between_processes() -> None:
    waits = set()
    for seed in range(5):
        circuit = Circuit(RETRY_S, Random(seed))
        waits.add(opened(circuit).retry_in_s(0))
    assert len(waits) == 5


@untimed
@given(st.lists(st.tuples(st.sampled_from("sfa"), st.integers(0, ns(2.0))), max_size=40))
def test_it_never_refuses_for_longer_than_its_bound(steps: list[tuple[str, int]]) -> None:
    circuit = a_circuit()
    now_ns = 0
    for outcome, passed_ns in steps:
        now_ns += passed_ns
        admission = circuit.admit(now_ns)
        if outcome == "s":
            circuit.succeeded(admission)
        elif outcome == "f" and admission is not Admission.REFUSED:
            circuit.failed(admission, now_ns)
        circuit.abandoned(admission)
    bound_ns = ns(RETRY_S * 2**DOUBLINGS_MAX * (1 + JITTER))
    assert circuit.admit(now_ns + bound_ns) is not Admission.REFUSED
