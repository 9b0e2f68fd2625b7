"""What the router remembers of a request (`router.decisions`), as the values that clients get."""

from __future__ import annotations

from dataclasses import replace

from eastwest.clock import seconds
from eastwest.errors import NotFound
from eastwest.explanation import Comparison, Decision, Explanation, Prediction, WorkerEstimate
from router.decisions import Decisions, Placed, Record
from router.placement import Candidate, Placement
from router.reasons import reason
from router.requests import Marks


def explain(decisions: Decisions, salt: str, client_id: str, now_ns: int) -> Explanation:
    """The latest request of this tenant under this name. `NotFound` where it is not kept, for
    whatever reason: whether another tenant has one is nobody's business."""
    record = decisions.find(salt, client_id)
    if record is None:
        raise NotFound(
            f"request {client_id!r} is not known here; kept are the latest "
            f"{decisions.requests_max:,} requests of this router, those of the same tenant only"
        )
    life = record.life
    marks = record.marks if life is None else life.marks
    output_tokens = record.output_tokens if life is None else life.output_tokens
    ended = record.ended_ns
    return Explanation(
        request_id=client_id,
        policy=decisions.policy,
        state=record.state if life is None else life.state.name.lower(),
        message=record.message,
        age_s=seconds(now_ns - record.accepted_ns),
        ended_s=None if ended is None else seconds(ended - record.accepted_ns),
        prompt_tokens=record.prompt_tokens,
        output_tokens=output_tokens,
        max_tokens=record.max_tokens,
        slo_ttft_s=record.slo.ttft_s,
        slo_tpot_s=record.slo.tpot_s,
        migrations=record.migrations if life is None else life.migrations,
        decisions=tuple(_decision(decisions.policy, record, placed) for placed in record.placed),
        decisions_left_out=record.left_out,
        comparisons=_comparisons(record, marks, output_tokens) if marks is not None else (),
    )


def prediction_of(candidate: Candidate, placement: Placement) -> Prediction:
    """A candidate as a value. placement: what was chosen."""
    return Prediction(
        prefill=candidate.prefill.worker_id,
        decode=candidate.decode.worker_id,
        known_tokens=candidate.known_tokens,
        queue_s=candidate.queue_s,
        prefill_s=candidate.prefill_s,
        transfer_s=candidate.transfer_s,
        step_s=candidate.step_s,
        own=candidate.own,
        others=candidate.others,
        chosen=candidate.prefill is placement.prefill and candidate.decode is placement.decode,
    )


def _decision(policy: str, record: Record, placed: Placed) -> Decision:
    placement, lost = placed.placement, placed.lost_ns
    decision = Decision(
        at_s=seconds(placed.at_ns - record.accepted_ns),
        waiting=placed.waiting,
        given_tokens=placed.given_tokens,
        prefill=placement.prefill.worker_id,
        decode=placement.decode.worker_id,
        blocks=placement.blocks,
        prefill_known_tokens=placement.prefill_known_tokens,
        decode_known_tokens=placement.decode_known_tokens,
        lender="" if placement.lender is None else placement.lender.worker_id,
        reason="",
        predictions=tuple(prediction_of(c, placement) for c in placed.candidates),
        left_out=placed.left_out,
        workers=tuple(WorkerEstimate(*estimate) for estimate in placed.estimates),
        workers_up=placed.workers_up,
        loss=placed.loss,
        lost_s=None if lost is None else seconds(lost - record.accepted_ns),
    )
    return replace(decision, reason=reason(policy, decision))


def _comparisons(record: Record, marks: Marks, output_tokens: int) -> tuple[Comparison, ...]:
    """Predicted, of the attempt that gave the first token, against measured. A moved request's
    time per token has its moves in it, which nobody predicts."""
    if not marks.first_token_ns:
        return ()
    timing = marks.timing(marks.first_token_ns)
    waited_ns = marks.dispatched_ns - marks.admitted_ns
    first = next((p for p in record.placed if p.at_ns == marks.dispatched_ns), None)
    chosen = None if first is None else _chosen(first)
    gaps = output_tokens - 1
    shown = timing.second
    known = chosen is not None
    queue_s, prefill_s, transfer_s, step_s = (
        (chosen.queue_s, chosen.prefill_s, chosen.transfer_s, chosen.step_s)
        if chosen
        else (0.0, 0.0, 0.0, 0.0)
    )
    before_s = seconds(marks.dispatched_ns - record.accepted_ns)
    rows = [
        Comparison("waiting in the router", None, seconds(waited_ns)),
        Comparison("reservation", None, seconds(timing.ttft.reservation_ns)),
        Comparison(
            "queue of the prefill worker",
            queue_s if known else None,
            seconds(timing.ttft.queue_ns - waited_ns),
        ),
        Comparison("prefill", prefill_s if known else None, seconds(timing.ttft.prefill_ns)),
        Comparison(
            "TTFT",
            before_s + queue_s + prefill_s if known else None,
            seconds(marks.first_token_ns - record.accepted_ns),
        ),
    ]
    if gaps > 0:
        exposed_s = None if shown is None else seconds(shown.exposed_transfer_ns)
        tpot_s = seconds(marks.last_token_ns - marks.first_token_ns) / gaps
        predicted_s = step_s + transfer_s / gaps
        rows += [
            Comparison("transfer not hidden", transfer_s if known else None, exposed_s),
            Comparison("TPOT", predicted_s if known else None, tpot_s),
        ]
    return tuple(rows)


def _chosen(placed: Placed) -> Candidate | None:
    placement = placed.placement
    for candidate in placed.candidates:
        if candidate.prefill is placement.prefill and candidate.decode is placement.decode:
            return candidate
    return None
