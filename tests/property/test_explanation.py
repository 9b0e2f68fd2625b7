"""Explanations on their way to a client and to a person.

1. What is sent is what is received.
2. JSON has every field, with numbers where there are numbers.
3. What is printed fits 100 columns, and names every placement.
"""

from __future__ import annotations

import io
import json

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deploy.explain import WIDTH, explanation_view
from eastwest.explanation import Comparison, Decision, Explanation, Prediction, WorkerEstimate
from eastwest.types import Role
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import explanation_from_wire, explanation_to_json, explanation_to_wire

NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=60)
SECONDS = st.floats(0, 1e6)
SHARES = st.floats(-1e3, 1e6)
COUNTS = st.integers(0, 2**31 - 1)
LARGE = st.integers(0, 2**53)
PREDICTIONS = st.builds(
    Prediction, NAMES, NAMES, COUNTS, SECONDS, SECONDS, SECONDS, SECONDS, SHARES, SHARES,
    st.booleans(),
)  # fmt: skip
WORKERS = st.builds(
    WorkerEstimate, NAMES, LARGE, st.sampled_from(Role), LARGE, COUNTS, LARGE,
    st.integers(-(2**31), 2**31 - 1), COUNTS,
)  # fmt: skip
DECISIONS = st.builds(
    Decision, SECONDS, COUNTS, COUNTS, NAMES, NAMES, COUNTS, COUNTS, COUNTS, NAMES, NAMES,
    st.lists(PREDICTIONS, max_size=3).map(tuple), COUNTS,
    st.lists(WORKERS, max_size=3).map(tuple), COUNTS, NAMES, st.none() | SECONDS,
)  # fmt: skip
COMPARISONS = st.builds(Comparison, NAMES, st.none() | SECONDS, st.none() | SECONDS)
EXPLANATIONS = st.builds(
    Explanation, NAMES, NAMES, NAMES, NAMES, SECONDS, st.none() | SECONDS, COUNTS, COUNTS, COUNTS,
    SECONDS, SECONDS, COUNTS, st.lists(DECISIONS, max_size=3).map(tuple), COUNTS,
    st.lists(COMPARISONS, max_size=3).map(tuple),
)  # fmt: skip


@given(EXPLANATIONS)
def test_what_is_sent_is_what_is_received(explanation: Explanation) -> None:
    data = explanation_to_wire(explanation).SerializeToString()
    received = inference.ExplainResponse.FromString(data)
    assert explanation_from_wire(received) == explanation


@given(EXPLANATIONS)
def test_json_has_every_field_as_numbers(explanation: Explanation) -> None:
    tree = json.loads(json.dumps(explanation_to_json(explanation)))
    absent = {"ended_s"} if explanation.ended_s is None else set()
    fields = {field.name for field in inference.ExplainResponse.DESCRIPTOR.fields}
    assert set(tree) == fields - absent
    for told, decision in zip(tree["decisions"], explanation.decisions, strict=True):
        for figures, worker in zip(told["workers"], decision.workers, strict=True):
            assert figures["context_tokens"] == worker.context_tokens
            assert figures["epoch"] == worker.epoch


@given(EXPLANATIONS)
def test_what_is_printed_fits(explanation: Explanation) -> None:
    out = io.StringIO()
    Console(file=out, width=WIDTH, highlight=False).print(explanation_view(explanation))
    lines = out.getvalue().splitlines()
    assert all(len(line.rstrip()) <= WIDTH for line in lines)
    assert len([line for line in lines if "tokens to " in line]) >= len(explanation.decisions)
