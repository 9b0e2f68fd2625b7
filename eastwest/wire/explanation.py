"""Why a request went where it went, on the wire and as JSON. Fields have the same names on both
sides; what is None is absent."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from eastwest.explanation import Comparison, Decision, Explanation, Prediction, WorkerEstimate
from eastwest.types import Role
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire.workers import enum_from_wire


def explanation_to_wire(explanation: Explanation) -> inference.ExplainResponse:
    return inference.ExplainResponse(
        **_plain(explanation),
        decisions=map(_decision_to_wire, explanation.decisions),
        comparisons=[inference.TimeComparison(**_plain(c)) for c in explanation.comparisons],
    )


def explanation_from_wire(wire: inference.ExplainResponse) -> Explanation:
    return Explanation(
        **_read(Explanation, wire),
        decisions=tuple(map(_decision_from_wire, wire.decisions)),
        comparisons=tuple(Comparison(**_read(Comparison, c)) for c in wire.comparisons),
    )


def explanation_to_json(explanation: Explanation) -> dict[str, Any]:
    """For whoever reads it by machine: the fields of `ExplainResponse`, seconds as numbers."""
    tree: dict[str, Any] = MessageToDict(
        explanation_to_wire(explanation),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    for decision in tree["decisions"]:
        for worker in decision["workers"]:
            # Numbers of 64 bits are strings in protobuf's JSON.
            for name in ("epoch", "waiting_tokens", "context_tokens"):
                worker[name] = int(worker[name])
    return tree


def _decision_to_wire(decision: Decision) -> inference.PlacementDecision:
    return inference.PlacementDecision(
        **_plain(decision),
        predictions=[inference.PairPrediction(**_plain(p)) for p in decision.predictions],
        workers=[inference.WorkerEstimate(**_plain(w)) for w in decision.workers],
    )


def _decision_from_wire(wire: inference.PlacementDecision) -> Decision:
    return Decision(
        **_read(Decision, wire),
        predictions=tuple(Prediction(**_read(Prediction, p)) for p in wire.predictions),
        workers=tuple(map(_worker_from_wire, wire.workers)),
    )


def _worker_from_wire(wire: inference.WorkerEstimate) -> WorkerEstimate:
    read = _read(WorkerEstimate, wire)
    return WorkerEstimate(**{**read, "role": enum_from_wire(Role, wire.role, "role")})


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a value that are neither None nor made of others."""
    pairs = ((f.name, getattr(value, f.name)) for f in fields(value))
    return {name: v for name, v in pairs if v is not None and not isinstance(v, tuple)}


def _read(kind: type[Any], wire: Message) -> dict[str, Any]:
    """The same, of a message."""
    known = wire.DESCRIPTOR.fields_by_name
    return {
        f.name: getattr(wire, f.name)
        if not known[f.name].has_presence or wire.HasField(f.name)
        else None
        for f in fields(kind)
        if known[f.name].message_type is None
    }
