"""Why a pair was chosen, in one sentence of words and numbers. Pure.

Where pairs were predicted, the chosen one is held against the best other one, part by part;
elsewhere what the policy goes by is told of those that it could have taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from eastwest.explanation import Decision, Prediction, WorkerEstimate
from eastwest.types import Role

# Smaller differences are not worth a word.
_SECONDS_MIN = 5e-5
_SHARE_MIN = 5e-3
_FOR_MAX = 3
_AGAINST_MAX = 2


def reason(policy: str, decision: Decision) -> str:
    """The sentence. Of `decision` everything is used but its own reason."""
    if decision.predictions:
        return _by_prediction(decision)
    pair = {w.worker_id: w for w in decision.workers}
    prefill, decode = pair[decision.prefill], pair[decision.decode]
    match policy:
        case "round_robin":
            return f"it was the turn of {_pair(decision.prefill, decision.decode)}"
        case "power_of_two":
            drawn = [w for w in decision.workers if w.role is not Role.PREFILL]
            said = [_least_sequences(decode, drawn, among=" of those drawn")]
        case "prefix":
            others = [w for w in decision.workers if w.role is not Role.PREFILL]
            said = [_most_known(prefill, decode, decision), _least_sequences(decode, others)]
        case _:
            others = [w for w in decision.workers if w.role is not Role.PREFILL]
            said = [_least_sequences(decode, others)]
    if prefill is not decode:
        sources = [w for w in decision.workers if w.role is Role.PREFILL]
        said.append(_least_waiting(prefill, sources))
    return "; ".join(part for part in said if part)


# Predicted.


def _by_prediction(decision: Decision) -> str:
    predictions = decision.predictions
    chosen = next(p for p in predictions if p.chosen)
    other = next((p for p in predictions if not p.chosen), None)
    name = _pair(chosen.prefill, chosen.decode)
    if other is None:
        held = f", {_known(chosen, decision)}" if chosen.known_tokens else ""
        return f"{name} was the only pair with room{held}"
    if other.score < chosen.score:
        waiting = {w.worker_id: w.waiting_tokens for w in decision.workers}
        tokens = waiting.get(other.prefill, 0)
        return (
            f"{name} at {chosen.score:.2f} is the best that takes a prompt now; "
            f"{_pair(other.prefill, other.decode)} would be at {other.score:.2f}, but "
            f"{other.prefill} has {tokens:,} tokens waiting"
        )
    lead = f"{name} at {chosen.score:.2f}, {_pair(other.prefill, other.decode)} at "
    lead += f"{other.score:.2f} (less is better)"
    pros, cons = _differences(chosen, other)
    if chosen.known_tokens and chosen.known_tokens >= other.known_tokens:
        pros.insert(0, _known(chosen, decision))
    if not pros and not cons:
        return f"{lead}: alike in every part, so that names decide"
    against = f"; against it, {_listed(cons[:_AGAINST_MAX])}" if cons else ""
    return f"{lead}: {_listed(pros[:_FOR_MAX]) or 'together it is better'}{against}"


def _differences(chosen: Prediction, other: Prediction) -> tuple[list[str], list[str]]:
    """What speaks for the chosen one, and against it."""
    pros: list[str] = []
    cons: list[str] = []

    def compare(part: str, before: str, less: str, more: str) -> None:
        saved: float = getattr(other, part) - getattr(chosen, part)
        share = part == "others"
        if abs(saved) < (_SHARE_MIN if share else _SECONDS_MIN):
            return
        shown = f"{abs(saved):.2f}" if share else _ms(abs(saved))
        into, way = (pros, less) if saved > 0 else (cons, more)
        into.append(f"{before}{shown} {way}")

    than = f" than that of {other.prefill}"
    compare("queue_s", "its queue is ", f"shorter{than}", f"longer{than}")
    compare("prefill_s", f"{chosen.prefill} needs ", "less for the prompt", "more for the prompt")
    compare("transfer_s", "", "less of the transfer shows", "more of the transfer shows")
    compare("step_s", f"a step of {chosen.decode} is ", "shorter", "longer")
    compare("others", "others lose ", "less of their targets", "more of their targets")
    return pros, cons


def _known(chosen: Prediction, decision: Decision) -> str:
    return f"{chosen.prefill} has {chosen.known_tokens:,} of {decision.given_tokens:,} tokens"


# Not predicted.


def _most_known(prefill: WorkerEstimate, decode: WorkerEstimate, decision: Decision) -> str:
    given = f"of {decision.given_tokens:,} tokens"
    holders = {w.worker_id: w for w in (prefill, decode) if w.known_tokens}
    if not holders:
        return "nobody that is not much busier has any of the prompt"
    return " and ".join(f"{w.worker_id} has {w.known_tokens:,} {given}" for w in holders.values())


def _least_sequences(
    chosen: WorkerEstimate, workers: Sequence[WorkerEstimate], among: str = ""
) -> str:
    counts = {w.worker_id: w.sequences for w in workers}
    return _least(chosen.worker_id, counts, "sequences", among)


def _least_waiting(chosen: WorkerEstimate, workers: Sequence[WorkerEstimate]) -> str:
    counts = {w.worker_id: w.waiting_tokens for w in workers}
    return _least(chosen.worker_id, counts, "prompt tokens waiting", "")


def _least(name: str, counts: dict[str, int], what: str, among: str) -> str:
    """`name` against the least of the others."""
    own = counts[name]
    others = [(count, other) for other, count in counts.items() if other != name]
    if not others:
        return f"{name} is the only one{among} and has {own:,} {what}"
    count, other = min(others)
    if own < count:
        return f"{name} has the fewest {what}{among} ({own:,}; {other} has {count:,})"
    if own == count:
        return f"{name} has {own:,} {what}, as has {other}"
    return f"{name} has {own:,} {what} ({other} has {count:,})"


def _pair(prefill: str, decode: str) -> str:
    return f"{prefill} alone" if prefill == decode else f"{prefill} with {decode}"


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"
