"""Places where a request is predicted to do best by its targets, and to do others least harm.

Of each pair it predicts the time to the first token (what has passed, what waits at the prefill
worker, then the tokens that have no KV there) and the time per output token (the decode step that
it joins, as prompts beside it make them of late, and what of the KV's way no compute hides). Each
is taken as a share of the request's target, which costs the more the nearer it comes to all of it;
what is beyond counts `Weights.late` times more. What others lose counts alike: the batch that gets
one more sequence, the one whose steps have the prompt beside them, and those who come for the same
prefill worker.

Any worker that decodes may also prefill, as far as its budget goes (`router.budgets`): for itself,
where nothing moves then, or, where it is aggregated, for another one. `conditional` off, roles are
kept: prefill workers prefill for decode workers, and aggregated ones for themselves.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from eastwest.clock import seconds
from eastwest.messages import WorkerInfo
from eastwest.types import Role
from router.fleet import Worker
from router.loading import LoadingCosts, weigh
from router.placement import Candidate, Known, Placement, has_room, takes_prompt
from router.requests import Request

# Workers that are looked at closely: by their load, and by what they hold.
_CALM, _HOLDING = 3, 1
# What a second counts far from its target, and how steeply that grows on the way there.
_FAR, _STEEP = 0.25, 8


class Costs(LoadingCosts, Protocol):
    """What placement asks besides: `usual_output`, the tokens of answers, lately."""

    usual_output: float

    def itl_s(self, worker: WorkerInfo, sequences: int, context_tokens: int) -> float:
        """Like `step_s`, with what prompts beside the steps have taken of late."""


@dataclass(frozen=True, slots=True)
class Weights:
    """late: how much more a second counts that comes after its target."""

    late: float = 10.0


DEFAULT_WEIGHTS = Weights()


class LeastCost:
    """See the module."""

    def __init__(
        self, costs: Costs, *, conditional: bool = True, weights: Weights = DEFAULT_WEIGHTS
    ) -> None:
        self._costs = costs
        self._conditional = conditional
        self._weights = weights

    def place(self, request: Request, workers: Sequence[Worker], known: Known) -> Placement | None:
        """See the protocol. `Placement.considered` says what was predicted, best first."""
        view = _View(request, known, self._costs, self._weights, workers)
        candidates = [view.candidate(*pair) for pair in self._pairs(view)]
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

    def predicted(
        self,
        request: Request,
        workers: Sequence[Worker],
        known: Known,
        prefill: Worker,
        decode: Worker,
    ) -> Candidate:
        """What `place` would predict of a pair among `workers`, whether or not it looked at it."""
        view = _View(request, known, self._costs, self._weights, workers)
        return view.candidate(prefill, decode)

    def _pairs(self, view: _View) -> list[tuple[Worker, Worker]]:
        """Those that are worth a closer look; their prefill workers may be busy beyond what they
        take."""
        workers, request, free = view.workers, view.request, self._conditional
        seats = [w for w in workers if w.decodes and has_room(w, w.blocks_of(request))]
        able = [w for w in seats if free or w.info.role is Role.AGGREGATED]
        pairs = [(w, w) for w in view.shortlist([w for w in able if takes_prompt(w)], _busy)]
        for kind in sorted({w.kind for w in seats}):
            sources = [w for w in workers if _gives(w, free) and w.kind == kind]
            fast = view.shortlist(sources, view.to_compute)
            decode = [w for w in seats if _takes(w, free) and w.kind == kind]
            calm = view.shortlist(decode, _busy) if fast else []
            pairs += [(p, d) for p in fast for d in calm if p is not d]
        return pairs


class _View:
    """One request, among workers as they are now."""

    def __init__(
        self,
        request: Request,
        known: Known,
        costs: Costs,
        weights: Weights,
        workers: Sequence[Worker],
    ) -> None:
        self.request = request
        self.workers = workers
        self._known = known
        self._costs = costs
        self._late = weights.late
        self._given = len(request.prompt)
        self._output = max(1.0, min(float(request.max_tokens), costs.usual_output))
        prefilling = max(1, sum(w.info.role is not Role.DECODE for w in workers))
        # Who comes next for the time that this one takes: of those who wait, who come for prefill
        # workers each their part; and somebody, wherever it is.
        self._behind, self._next = known.waiting / prefilling, 1 / prefilling
        self._first: dict[Worker, _FirstToken] = {}
        self._decode: dict[Worker, _Steps] = {}

    def shortlist(self, workers: list[Worker], load: Callable[[Worker], float]) -> Iterable[Worker]:
        """The least loaded, and who holds most of the prompt."""
        if len(workers) <= _CALM + _HOLDING:
            return workers
        calm = heapq.nsmallest(_CALM, workers, key=lambda w: (load(w), w.worker_id))
        holding = heapq.nsmallest(
            _HOLDING, workers, key=lambda w: (-self._known.cached_tokens(w), load(w), w.worker_id)
        )
        return dict.fromkeys((*calm, *holding))

    def to_compute(self, worker: Worker) -> float:
        """Prompt tokens until the first token: those of others, and what is not there."""
        return worker.waiting_tokens + self._given - self._known.reusable_tokens(worker)

    def candidate(self, prefill: Worker, decode: Worker) -> Candidate:
        """What is predicted of a pair."""
        slo, output = self.request.slo, self._output
        # Lax targets of one's own do not make others' time cheap.
        usual = self.request.usual_slo or slo
        first, steps = self._first_token(prefill), self._steps(decode)
        exposed_s = 0.0
        if prefill is not decode:
            missing = self._given - self._known.cached_tokens(decode)
            moving_s = self._costs.transfer_s(prefill.info, decode.info, missing)
            exposed_s = max(0.0, moving_s - first.prefill_s)
        waited_s = seconds(self._known.now_ns - self.request.accepted_ns)
        own = self._share(waited_s + first.seconds, slo.ttft_s)
        own += self._share(steps.joined_s + exposed_s / output, slo.tpot_s)
        before, joined = steps.before_s, steps.joined_s
        others = decode.decoding_sequences * self._loss(before, joined, usual.tpot_s)
        if first.stall_s:
            # The prompt's chunks come between the tokens of those that decode beside it.
            stalled_s = self._steps(prefill).before_s + first.stall_s / output
            others += prefill.decoding_now * self._loss(
                self._steps(prefill).before_s, stalled_s, usual.tpot_s
            )
        busy = min(1.0, prefill.waiting_tokens / prefill.info.step_tokens)
        behind = self._next if prefill.info.role is Role.DECODE else self._behind
        others += (busy + behind) * first.prefill_s / usual.ttft_s
        return Candidate(
            prefill, decode, first.there, first.queue_s, first.prefill_s, exposed_s,
            steps.joined_s, own, others,
        )  # fmt: skip

    def _loss(self, before_s: float, after_s: float, target_s: float) -> float:
        """What it costs that a token takes longer."""
        return self._share(after_s, target_s) - self._share(before_s, target_s)

    def _share(self, seconds: float, target_s: float) -> float:
        """What it costs to take so much of a target: little far from it, for nothing is missed
        there; more near it, for predictions are not certain."""
        share = seconds / target_s
        within = min(share, 1.0)
        return within * (_FAR + within**_STEEP) + self._late * (share - within)

    def _first_token(self, worker: Worker) -> _FirstToken:
        if (found := self._first.get(worker)) is None:
            found = self._first[worker] = self._first_token_of(worker)
        return found

    def _first_token_of(self, worker: Worker) -> _FirstToken:
        waiting_s, _ = self._compute(worker, worker.waiting_tokens, 0)
        queue_s = max(0.0, waiting_s - self._had_s(worker))
        way = weigh(self._costs, worker, self._given, self._known, queue_s)
        there = way.present_tokens
        prefill_s, stall_s = self._compute(worker, self._given - there, there)
        return _FirstToken(there, way.wait_s, prefill_s, stall_s)

    def _had_s(self, worker: Worker) -> float:
        """What the prompts that wait there have had of the worker."""
        return seconds(self._known.now_ns - worker.prompts_ns) if worker.prompt_tokens else 0.0

    def _compute(self, worker: Worker, tokens: int, past: int) -> tuple[float, float]:
        """Seconds that so many prompt tokens take, and what of it a batch that decodes there loses
        by them."""
        info, costs, sequences = worker.info, self._costs, worker.decoding_now
        if not sequences or tokens <= 0:
            return costs.prompt_s(info, tokens, past), 0.0
        steps, each = worker.chunks(tokens)
        bare_s = costs.step_s(info, sequences, worker.context_tokens)
        mixed_s = costs.step_s(info, sequences, worker.context_tokens, each)
        return steps * mixed_s, steps * (mixed_s - bare_s)

    def _steps(self, worker: Worker) -> _Steps:
        if (found := self._decode.get(worker)) is None:
            info, many = worker.info, worker.decoding_sequences
            context = worker.context_tokens
            found = self._decode[worker] = _Steps(
                self._costs.itl_s(info, many, context),
                self._costs.itl_s(info, many + 1, context + self._given),
            )
        return found


class _FirstToken(NamedTuple):
    """there: tokens whose KV is at the worker, or is loaded. queue_s: what others and loading take
    first; prefill_s: what is left of the prompt, and stall_s: how much longer than without it the
    steps are meanwhile of a batch that decodes there."""

    there: int
    queue_s: float
    prefill_s: float
    stall_s: float

    @property
    def seconds(self) -> float:
        return self.queue_s + self.prefill_s


class _Steps(NamedTuple):
    """A decode step as it is, and with one sequence more."""

    before_s: float
    joined_s: float


def _gives(worker: Worker, free: bool) -> bool:
    """Whether it prefills for others. free: whatever its role says of one worker's doing both."""
    role = worker.info.role
    return role is Role.PREFILL or (free and role is Role.AGGREGATED)


def _takes(worker: Worker, free: bool) -> bool:
    """Whether it decodes what others have prefilled."""
    role = worker.info.role
    return role is Role.DECODE or (free and role is Role.AGGREGATED)


def _busy(worker: Worker) -> float:
    """By what decode steps take, roughly; a worker's prompts stall them."""
    return worker.decoding_sequences + worker.waiting_tokens / worker.info.step_tokens
