"""Places where a request is predicted to do best by its targets, and to do others least harm.

Of each pair it predicts the time to the first token (what waits at the prefill worker, then the
tokens that have no KV there) and the time per output token (the decode step that it joins, and what
of the KV's way no compute hides). Each is taken as a share of the request's target, and counts
`_LATE` times beyond it. What others lose counts alike: the batch that gets one more sequence, and
those who come for the same prefill worker.

A decode worker may also prefill by itself (conditional disaggregation): nothing moves then, but its
batch waits for the prompt, which is counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from eastwest.ports import ServingCosts
from eastwest.types import Role
from router.fleet import Worker
from router.placement import Candidate, Known, Placement, has_room, takes_prompt
from router.requests import Request

# How much more a second counts that comes after its target.
_LATE = 10.0
# Workers of each phase that are held against each other in pairs.
_SHORTLIST = 4


class Costs(ServingCosts, Protocol):
    """What placement asks besides: `usual_output`, the tokens of answers, lately."""

    usual_output: float


class LeastCost:
    """See the module."""

    def __init__(self, costs: Costs, *, conditional: bool = True) -> None:
        self._costs = costs
        self._conditional = conditional

    def place(self, request: Request, workers: Sequence[Worker], known: Known) -> Placement | None:
        """See the protocol. `Placement.considered` says what was predicted, best first."""
        candidates = self._candidates(request, workers, known)
        candidates.sort(key=lambda c: (c.score, c.decode.worker_id, c.prefill.worker_id))
        for candidate in candidates:
            # Where a pair is better that takes no prompt now, waiting for one like it is better
            # than to make a decode worker prefill.
            if takes_prompt(candidate.prefill) and not (
                candidate.diverted and candidate is not candidates[0]
            ):
                blocks = candidate.decode.blocks_of(request)
                considered = tuple(candidates)
                return Placement(candidate.prefill, candidate.decode, blocks, considered=considered)
        return None

    def _candidates(
        self, request: Request, workers: Sequence[Worker], known: Known
    ) -> list[Candidate]:
        """The pairs that are worth a closer look, in no order; their prefill workers may be busy
        beyond what they take."""
        seats = [w for w in workers if w.decodes and has_room(w, w.blocks_of(request))]
        alone = [w for w in seats if self._conditional or w.info.role is Role.AGGREGATED]
        ranked = [
            (self._first_token(request, w, known).seconds + self._joined_s(w), w)
            for w in alone
            if takes_prompt(w)
        ]
        pairs = [(w, w) for w in _least(ranked)]
        for kind in sorted({w.kind for w in seats}):
            sources = [w for w in workers if w.kind == kind and w.info.role is Role.PREFILL]
            fast = _least([(self._first_token(request, w, known).seconds, w) for w in sources])
            of_kind = [w for w in seats if w.kind == kind and w.info.role is Role.DECODE]
            calm = _least([(self._joined_s(w), w) for w in of_kind])
            pairs += [(p, d) for p in fast for d in calm]
        behind = known.waiting / max(1, sum(w.info.role is not Role.DECODE for w in workers))
        return [self._candidate(request, p, d, known, behind) for p, d in pairs]

    # Predictions.

    def _first_token(self, request: Request, worker: Worker, known: Known) -> _FirstToken:
        """What the request waits for at this worker."""
        given, info = len(request.prompt), worker.info
        there = min(known.reusable_tokens(worker), given - 1)
        queue_s = self._costs.prompt_s(info, worker.waiting_tokens, 0)
        prefill_s = self._costs.prompt_s(info, given - there, there)
        if sequences := worker.decoding_sequences:
            # Every chunk shares its step with the running batch.
            chunks = -(-(given - there + worker.waiting_tokens) // info.step_tokens)
            prefill_s += chunks * self._costs.step_s(info, sequences, worker.context_tokens)
        return _FirstToken(there, queue_s, prefill_s)

    def _joined_s(self, worker: Worker, given: int = 0) -> float:
        """Seconds of a decode step with one sequence more."""
        sequences = worker.decoding_sequences + 1
        return self._costs.step_s(worker.info, sequences, worker.context_tokens + given)

    def _candidate(
        self, request: Request, prefill: Worker, decode: Worker, known: Known, behind: float
    ) -> Candidate:
        """behind: of those who wait, how many come for each prefill worker."""
        given, slo = len(request.prompt), request.slo
        output = max(1.0, min(float(request.max_tokens), self._costs.usual_output))
        first = self._first_token(request, prefill, known)
        in_place = prefill is decode
        exposed_s = 0.0
        if not in_place:
            missing = given - known.cached_tokens(decode)
            moving_s = self._costs.transfer_s(prefill.info, decode.info, missing)
            exposed_s = max(0.0, moving_s - first.prefill_s)
        step_s = self._joined_s(decode, given)
        own = _share(first.seconds, slo.ttft_s) + _share(step_s + exposed_s / output, slo.tpot_s)
        batch = decode.decoding_sequences
        before_s = self._costs.step_s(decode.info, batch, decode.context_tokens)
        stall_s = first.prefill_s / output if in_place else 0.0
        others = batch * (_share(step_s + stall_s, slo.tpot_s) - _share(before_s, slo.tpot_s))
        if prefill.info.role is not Role.DECODE:
            busy = min(1.0, prefill.waiting_tokens / prefill.info.step_tokens)
            others += (busy + behind) * first.prefill_s / slo.ttft_s
        return Candidate(
            prefill, decode, first.there, first.queue_s, first.prefill_s, exposed_s, step_s, own,
            others,
        )  # fmt: skip


class _FirstToken(NamedTuple):
    """there: tokens whose KV is at the worker. queue_s: what others take first; prefill_s: what is
    left of the prompt."""

    there: int
    queue_s: float
    prefill_s: float

    @property
    def seconds(self) -> float:
        return self.queue_s + self.prefill_s


def _share(seconds: float, target_s: float) -> float:
    """Of a target, with what is beyond it counted `_LATE` times."""
    share = seconds / target_s
    return share + _LATE * max(0.0, share - 1)


def _least(ranked: list[tuple[float, Worker]]) -> list[Worker]:
    """Those that are to be looked at closely."""
    best = heapq.nsmallest(_SHORTLIST, ranked, key=lambda r: (r[0], r[1].worker_id))
    return [worker for _, worker in best]
