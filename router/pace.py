"""How fast workers are: what was predicted of their work, set right by what it took.

A prediction is the costs' own times a correction of that worker: measured over predicted seconds
of late, old work counting less. Where a deployment is on devices that nobody described, the
corrections find the scale, and only the proportions are the costs'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from eastwest.clock import ns, seconds
from eastwest.messages import Prefilled, SequenceOutput, WorkerInfo
from eastwest.ports import ServingCosts
from router.attempt import Attempt
from router.fleet import Worker

# What older work still counts after another piece was measured.
_KEPT = 0.95
# Prompts come and go within the life of a sequence: what it sees of them is a longer mean.
_KEPT_TOKEN = 0.99
# Until so many predicted seconds were measured, the prediction counts as if it were right.
_TRUST_S = 0.25
# Loads are short where a store is as fast as it is thought to be: one that is slow shows at once.
_TRUST_LOAD_S = 0.01
_LEAST, _MOST = 1e-5, 1e5
_USUAL_OUTPUT = 128.0
_OUTPUT_SMOOTHING = 0.05
# A worker's best of so many of its latest prompts is what it can do, for so long.
_BEST_OF = 16
_BEST_NS = ns(60.0)
# A longer gap between two steps counts as so many: the worker, or this process, stood still.
_GAP_STEPS = 4.0


@runtime_checkable
class Described(Protocol):
    """Costs that a log can keep."""

    def described(self, worker: WorkerInfo) -> Mapping[str, Any]:
        """Plain values that the worker's costs can be made of again."""


@dataclass(slots=True)
class Correction:
    """Measured over predicted, of one kind of work on one worker."""

    measured_s: float = _TRUST_S
    predicted_s: float = _TRUST_S
    kept: float = _KEPT

    @property
    def factor(self) -> float:
        return min(max(self.measured_s / self.predicted_s, _LEAST), _MOST)

    def learn(self, measured_s: float, predicted_s: float) -> None:
        """A piece of work took so long."""
        kept = self.kept if self.predicted_s > _TRUST_S else 1.0
        self.measured_s = self.measured_s * kept + measured_s
        self.predicted_s = self.predicted_s * kept + predicted_s

    def doubt(self) -> None:
        """What was measured counts less, and the prediction more."""
        self.measured_s = _KEPT * self.measured_s + (1 - _KEPT) * self.predicted_s


@dataclass(slots=True)
class _Paces:
    """Of one worker. step: of decode steps by themselves; token: of all of them, with the prompts
    that some have beside them. latest: measured over predicted of its latest prompts, the last one
    at computed_ns. stepped_ns: when its last step was heard of, where sequences went on; alone:
    whether no prompt was there."""

    prompt: Correction = field(default_factory=Correction)
    step: Correction = field(default_factory=Correction)
    token: Correction = field(default_factory=lambda: Correction(kept=_KEPT_TOKEN))
    load: Correction = field(default_factory=lambda: Correction(_TRUST_LOAD_S, _TRUST_LOAD_S))
    fetch: Correction = field(default_factory=lambda: Correction(_TRUST_LOAD_S, _TRUST_LOAD_S))
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=_BEST_OF))
    computed_ns: int = 0
    stepped_ns: int | None = None
    alone: bool = True


class Factors(NamedTuple):
    """Measured over predicted: of prompts, of decode steps by themselves, of loading stored KV, of
    decode steps with all that runs beside them, and of loading what others lend."""

    prompt: float
    step: float
    load: float
    token: float
    fetch: float


class Pace:
    """Is `eastwest.ports.ServingCosts`, corrected. usual_output: tokens of answers, lately."""

    def __init__(self, costs: ServingCosts) -> None:
        self._costs = costs
        self._paces: dict[str, _Paces] = {}
        self.usual_output = _USUAL_OUTPUT

    # Predictions.

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        """See the protocol."""
        predicted = self._costs.prompt_s(worker, new_tokens, past_tokens)
        return predicted * self._of(worker).prompt.factor

    def least_prompt_s(
        self, worker: WorkerInfo, new_tokens: int, past_tokens: int, now_ns: int
    ) -> float | None:
        """What a prompt takes where all goes as well as it did for the best of the latest ones;
        None where too few were measured, or none of late: who is given no prompts because of this
        must be able to show that it is wrong."""
        paces = self._of(worker)
        if len(paces.latest) < _BEST_OF or now_ns - paces.computed_ns > _BEST_NS:
            return None
        return self._costs.prompt_s(worker, new_tokens, past_tokens) * min(paces.latest)

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        """See the protocol."""
        paces = self._of(worker)
        bare_s = self._costs.step_s(worker, sequences, context_tokens)
        if not prompt_tokens:
            return bare_s * paces.step.factor
        mixed_s = self._costs.step_s(worker, sequences, context_tokens, prompt_tokens)
        return bare_s * paces.step.factor + (mixed_s - bare_s) * paces.prompt.factor

    def itl_s(self, worker: WorkerInfo, sequences: int, context_tokens: int) -> float:
        """From one token of each sequence to the next, with what prompts have taken of late."""
        bare_s = self._costs.step_s(worker, sequences, context_tokens)
        return bare_s * self._of(worker).token.factor

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        """See the protocol."""
        return self._costs.load_s(worker, tokens) * self._of(worker).load.factor

    def fetch_s(self, lender: WorkerInfo, worker: WorkerInfo, tokens: int) -> float:
        """See `router.loading.LoadingCosts`."""
        return self._costs.transfer_s(lender, worker, tokens) * self._of(worker).fetch.factor

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        """See the protocol."""
        return self._costs.transfer_s(source, target, tokens)

    def factors(self, worker: WorkerInfo) -> Factors:
        """Measured over predicted."""
        paces = self._of(worker)
        corrections = (paces.prompt, paces.step, paces.load, paces.token, paces.fetch)
        return Factors(*[correction.factor for correction in corrections])

    def described(self, worker: WorkerInfo) -> Mapping[str, Any] | None:
        """What the costs themselves can be made of again, where they say."""
        return self._costs.described(worker) if isinstance(self._costs, Described) else None

    # Measurements.

    def prefilled(self, attempt: Attempt, event: Prefilled, now_ns: int) -> None:
        """A prompt is computed. Where KV was not loaded, for that was thought to be slow, it is
        less sure that it still is; or nobody would ever find out."""
        worker, computed = attempt.prefill, event.computed_tokens
        info = worker.info
        meet = attempt.placement.meet_tokens
        lender = attempt.placement.lender
        if lender is None:
            self.loaded(worker, event.loaded_tokens, event.load_ns)
        else:
            self._fetched(worker, lender, event.loaded_tokens, event.load_ns)
        if meet >= attempt.given_tokens:
            self._of(info).load.doubt()
            self._of(info).fetch.doubt()
        elif meet and event.loaded_tokens:
            return  # it was waited for what was loaded meanwhile
        if (sequences := worker.decoding_now) and computed:
            # Every chunk has shared its step with the running batch.
            steps, each = worker.chunks(computed)
            context = worker.context_tokens
            predicted = steps * self._costs.step_s(info, sequences, context, each)
        else:
            predicted = self._costs.prompt_s(info, computed, attempt.given_tokens - computed)
        paces = self._of(info)
        # The first step of a prompt that comes behind another one has that one's end.
        measured_s = seconds(min(event.prefill_ns, now_ns - worker.prompts_ns))
        paces.prompt.learn(measured_s, predicted)
        if predicted > 0:
            paces.latest.append(measured_s / predicted)
            paces.computed_ns = now_ns

    def loaded(self, worker: Worker, tokens: int, load_ns: int) -> None:
        """Stored KV was read. Looking in vain says nothing of how long it takes."""
        if tokens:
            predicted = self._costs.load_s(worker.info, tokens)
            self._of(worker.info).load.learn(seconds(load_ns), predicted)

    def _fetched(self, worker: Worker, lender: Worker, tokens: int, load_ns: int) -> None:
        """KV was read that another worker lent."""
        if tokens:
            predicted = self._costs.transfer_s(lender.info, worker.info, tokens)
            self._of(worker.info).fetch.learn(seconds(load_ns), predicted)

    def stepped(self, worker: Worker, outputs: Sequence[SequenceOutput], now_ns: int) -> None:
        """A decode step is over. Called for every one: steps that follow each other say how long
        one takes; by itself, where no prompt waits between them."""
        paces = self._of(worker.info)
        before, alone = paces.stepped_ns, worker.waiting_tokens == 0
        going_on = any(output.finish is None for output in outputs)
        paces.stepped_ns = now_ns if going_on else None
        by_itself, paces.alone = alone and paces.alone, alone
        if before is None:
            return
        info, many, context = worker.info, len(outputs), worker.context_tokens
        predicted = self._costs.step_s(info, many, context)
        measured = seconds(now_ns - before)
        if by_itself:
            longest = _GAP_STEPS * predicted * paces.step.factor
            paces.step.learn(min(measured, longest), predicted)
        else:
            longest = _GAP_STEPS * self.step_s(info, many, context, worker.budget)
        paces.token.learn(min(measured, longest), predicted)

    def ended(self, output_tokens: int) -> None:
        """An answer is complete."""
        self.usual_output += _OUTPUT_SMOOTHING * (output_tokens - self.usual_output)

    def recall(self, worker: WorkerInfo, factors: Factors) -> None:
        """Go by these `factors`, which were found before."""
        prompt, step, load, token, fetch = (Correction(factor, 1.0) for factor in factors)
        self._paces[worker.worker_id] = _Paces(prompt, step, token, load, fetch)

    def forget(self, worker: Worker) -> None:
        """The worker has left; another incarnation may be of another make."""
        self._paces.pop(worker.worker_id, None)

    def _of(self, worker: WorkerInfo) -> _Paces:
        paces = self._paces.get(worker.worker_id)
        if paces is None:
            paces = self._paces[worker.worker_id] = _Paces()
        return paces


class NominalCosts:
    """Is `eastwest.ports.ServingCosts` where nothing is known of model and devices: proportions
    alone, for `Pace` to find the scale of."""

    TOKEN_S = 5e-4
    STEP_S = 2e-2
    SEQUENCE_S = 5e-4
    BYTES_PER_S = 1e9
    LOOKUP_S = 1e-3

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        """See the protocol: as many steps as it needs, and the tokens."""
        if new_tokens <= 0:
            return 0.0
        steps = -(-new_tokens // worker.step_tokens)
        return steps * self.STEP_S + new_tokens * self.TOKEN_S

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        """See the protocol: a step, the sequences and the prompt's tokens."""
        if not sequences:
            return 0.0
        return self.STEP_S + sequences * self.SEQUENCE_S + prompt_tokens * self.TOKEN_S

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        """See the protocol: a look-up, and bytes at a fixed rate."""
        return self.LOOKUP_S + tokens * worker.model.kv.bytes_per_token / self.BYTES_PER_S

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        """See the protocol: bytes at a fixed rate."""
        return tokens * target.model.kv.bytes_per_token / self.BYTES_PER_S

    def described(self, worker: WorkerInfo) -> Mapping[str, Any]:
        """See `Described`: nothing, for they know nothing of the worker."""
        return {}
