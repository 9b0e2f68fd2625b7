"""Puts the questions of a decision log again: to the policy that answered them, or to another.

Workers, what is known of the prompt, and costs are made as they were seen, so the answers of the
same policy must be the same: a log is a test of it. What others answer is held against what was
recorded, by what the cost model predicts of both. Each question is put as it was then: what other
answers would have made of those that came later, only a simulated run shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from eastwest.clock import seconds
from eastwest.config import Policy, RouterConfig
from eastwest.errors import ConfigError
from eastwest.messages import WorkerInfo
from eastwest.ports import ServingCosts
from eastwest.types import SamplingParams
from planner.cost import CostModel
from planner.cost_values import cost_of_values
from planner.serving import PlannedCosts
from router.cost_policy import LeastCost, Weights
from router.decision_lines import Gap, Header
from router.decision_log import Asked, Choice, Ended, Sight, Subject, recall
from router.decision_log_file import LogReader
from router.fleet import Worker
from router.loading import Loans, reusable
from router.pace import NominalCosts, Pace
from router.placement import Candidate, Loan, Placement
from router.policies import policy_of
from router.requests import Request

# Whose answers depend on those that they gave before.
_WITH_MEMORY = ("round_robin", "power_of_two")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a policy is set: what `Header` says, or something else."""

    policy: Policy
    conditional: bool
    late: float

    @classmethod
    def of(cls, header: Header) -> Settings:
        """As it was recorded."""
        return cls(header.policy, header.conditional, header.late)

    @property
    def has_memory(self) -> bool:
        return self.policy in _WITH_MEMORY


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the cost model says of an answer. own, others: see `Candidate`."""

    ttft_s: float
    tpot_s: float
    own: float
    others: float

    @property
    def score(self) -> float:
        return self.own + self.others


@dataclass(frozen=True, slots=True)
class Answer:
    """Where to; predicted is None where nothing can be, or nowhere was the answer."""

    choice: Choice | None
    predicted: Predicted | None


@dataclass(frozen=True, slots=True)
class Compared:
    """One question, on this line of the file, and both answers."""

    line: int
    asked: Asked
    recorded: Answer
    again: Answer

    @property
    def same(self) -> bool:
        return self.recorded.choice == self.again.choice


@dataclass(frozen=True, slots=True)
class Measured:
    """How a request went, beside what was predicted of the placement that gave its first token.
    moved: its time per token has its moves in it, which nobody predicts."""

    ended: Ended
    predicted: Predicted

    @property
    def moved(self) -> bool:
        return self.ended.migrations > 0


@dataclass(slots=True)
class Replay:
    """Iterate it, once, for what each line came to. left_out: entries that the file says are not in
    it. The rest is known at the end: cut_off as in `LogReader`."""

    path: Path
    settings: Settings
    header: Header
    left_out: int = 0
    cut_off: bool = False
    _reader: LogReader = field(init=False)

    @classmethod
    def of(
        cls,
        path: Path,
        policy: Policy | None = None,
        conditional: bool | None = None,
        late: float | None = None,
    ) -> Replay:
        """What is None is as recorded. `ConfigError` where the file is no log."""
        reader = LogReader(path)
        was = Settings.of(reader.header)
        settings = Settings(
            policy or was.policy,
            was.conditional if conditional is None else conditional,
            was.late if late is None else late,
        )
        replay = cls(path, settings, reader.header)
        replay._reader = reader
        return replay

    @property
    def as_recorded(self) -> bool:
        """Whether every answer must be the same."""
        return self.settings == Settings.of(self.header)

    def __iter__(self) -> Iterator[Compared | Measured]:
        bench = _Bench(self.settings)
        predicted: dict[int, Predicted] = {}
        for line, entry in self._reader:
            if isinstance(entry, Gap):
                self.left_out += entry.entries
            elif isinstance(entry, Ended):
                latest = predicted.pop(entry.request, None)
                if latest is not None and entry.ttft_s is not None:
                    yield Measured(entry, latest)
            else:
                recorded, again = self._answers(bench, line, entry)
                if not entry.output_tokens and recorded.predicted is not None:
                    predicted[entry.request] = recorded.predicted
                yield Compared(line, entry, recorded, again)
        self.cut_off = self._reader.cut_off

    def _answers(self, bench: _Bench, line: int, asked: Asked) -> tuple[Answer, Answer]:
        try:
            return bench.ask(asked)
        except (ConfigError, ArithmeticError) as error:
            message = error.message if isinstance(error, ConfigError) else f"{error!r}"
            raise ConfigError(f"{self.path} line {line}: {message}") from error


class _Bench:
    """A policy, and workers that are set to what was seen of them."""

    def __init__(self, settings: Settings) -> None:
        self._costs = _LoggedCosts()
        self._pace = Pace(self._costs)
        self._workers: dict[Subject, Worker] = {}
        weights = Weights(late=settings.late)
        config = RouterConfig(policy=settings.policy, conditional=settings.conditional)
        self._policy = policy_of(config, self._pace, weights)
        self._judge = LeastCost(self._pace, weights=weights)

    def ask(self, asked: Asked) -> tuple[Answer, Answer]:
        """The recorded answer, and the policy's."""
        self._pace.usual_output = asked.usual_output
        workers = [self._worker(sight) for sight in asked.seen]
        tokens = {w: s.known for w, s in zip(workers, asked.seen, strict=True)}
        known = _LoggedKnown(asked.waiting, asked.at_ns, tokens)
        request = _request(asked)
        placement = self._policy.place(request, workers, known)
        again = None if placement is None else _choice(placement, workers)

        def predicted(choice: Choice | None) -> Predicted | None:
            if choice is None or not all(self._costs.tell(w.info) for w in workers):
                return None
            pair = workers[choice.prefill], workers[choice.decode]
            candidate = self._judge.predicted(request, workers, known, *pair)
            return _predicted(candidate, asked)

        recorded = Answer(asked.placed, predicted(asked.placed))
        if again == asked.placed:
            return recorded, recorded
        return recorded, Answer(again, predicted(again))

    def _worker(self, sight: Sight) -> Worker:
        subject = sight.subject
        worker = self._workers.get(subject)
        if worker is None:
            worker = self._workers[subject] = Worker(subject.info, heard_ns=0)
            self._costs.add(subject)
        recall(worker, sight)
        self._pace.recall(subject.info, sight.pace)
        return worker


class _LoggedCosts:
    """Is `eastwest.ports.ServingCosts`, as they were where the log was written."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int], Mapping[str, Any] | None] = {}
        self._nominal = NominalCosts()
        self._planned = PlannedCosts(self._model)

    def add(self, subject: Subject) -> None:
        """A worker that may be asked for."""
        self._values[subject.info.worker_id, subject.info.epoch] = subject.costs

    def tell(self, worker: WorkerInfo) -> bool:
        """Whether they are known of it."""
        return self._values[worker.worker_id, worker.epoch] is not None

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        """See the protocol."""
        return self._of(worker).prompt_s(worker, new_tokens, past_tokens)

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        """See the protocol."""
        return self._of(worker).step_s(worker, sequences, context_tokens, prompt_tokens)

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        """See the protocol."""
        return self._of(worker).load_s(worker, tokens)

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        """See the protocol."""
        return self._of(source).transfer_s(source, target, tokens)

    def _of(self, worker: WorkerInfo) -> ServingCosts:
        values = self._values[worker.worker_id, worker.epoch]
        if values is None:
            raise ConfigError(
                f"the log does not say what work takes on {worker.worker_id}; allowed: policies "
                f"that predict nothing"
            )
        return self._planned if values else self._nominal

    def _model(self, worker: WorkerInfo) -> CostModel:
        return cost_of_values(self._values[worker.worker_id, worker.epoch] or {})


@dataclass(frozen=True)
class _LoggedKnown:
    """Is `router.placement.Known`."""

    waiting: int
    now_ns: int
    tokens: Mapping[Worker, tuple[int, int]]

    @cached_property
    def _loans(self) -> Loans:
        return Loans((worker, cached) for worker, (cached, _) in self.tokens.items())

    def cached_tokens(self, worker: Worker) -> int:
        return self.tokens[worker][0]

    def stored_tokens(self, worker: Worker) -> int:
        return self.tokens[worker][1]

    def loan(self, worker: Worker) -> Loan | None:
        return self._loans.to(worker)

    def reusable_tokens(self, worker: Worker) -> int:
        return reusable(self, worker)


def _request(asked: Asked) -> Request:
    """With a prompt that has a length only: no policy reads it."""
    return Request(
        request_id=str(asked.request),
        salt="",
        session_id="",
        prompt=cast("tuple[int, ...]", range(asked.prompt_tokens)),
        sampling=SamplingParams(),
        max_tokens=asked.max_tokens,
        accepted_ns=asked.at_ns - asked.waited_ns,
        deadline_ns=asked.at_ns,
        slo=asked.slo,
        usual_slo=asked.usual_slo,
    )


def _choice(placement: Placement, workers: list[Worker]) -> Choice:
    prefill, decode = workers.index(placement.prefill), workers.index(placement.decode)
    return Choice(prefill, decode, placement.blocks)


def _predicted(candidate: Candidate, asked: Asked) -> Predicted:
    output = max(1.0, min(float(asked.max_tokens), asked.usual_output))
    return Predicted(
        seconds(asked.waited_ns) + candidate.queue_s + candidate.prefill_s,
        candidate.step_s + candidate.transfer_s / output,
        candidate.own,
        candidate.others,
    )
