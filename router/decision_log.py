"""What the policy was asked, what it saw and what it answered: entries of a log, from which the
same questions can be put again, to the same policy or to another (`sim.decisions`).

Every placement is an entry. Where the policy finds none, which it is asked for again whenever
something changes, the first time of each wait is one. How the request then went is another.
Of a prompt, entries have the length alone; requests have numbers, for their ids are the clients'.

This side is on the way of every request: it takes references and bare numbers, and hands them to
`write`, which makes lines of them later (`router.decision_lines`, `router.decision_log_file`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from eastwest.clock import seconds
from eastwest.messages import Load, WorkerInfo
from eastwest.types import Slo
from eastwest.value import value
from router.fleet import Worker
from router.lifecycle import Lifecycle
from router.pace import Factors, Pace
from router.placement import Known, Placement

# What policies read of a worker, besides what it says of itself once; and of its last report.
WORKER_NUMBERS = (
    "prompt_tokens", "sequences", "context_tokens", "asked_blocks", "granted_blocks",
    "foreign_tokens", "foreign_sequences", "decoding", "prompts_ns", "budget",
)  # fmt: skip
LOAD_NUMBERS = ("free_blocks", "cached_blocks", "sessions_inactive")
_numbers_of = attrgetter(*WORKER_NUMBERS)
_load_of = attrgetter(*LOAD_NUMBERS)
_NOTHING = (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One connection of a worker, compared by identity. costs: what its costs can be made of again
    (`Pace.described`)."""

    info: WorkerInfo
    costs: Mapping[str, Any] | None


class Sight(NamedTuple):
    """A worker as it was seen. numbers: `WORKER_NUMBERS`. load: `LOAD_NUMBERS`, None before its
    first report. known: leading tokens of the prompt that it has, and that are stored for it. pace:
    `Pace.factors`."""

    subject: Subject
    numbers: tuple[int, ...]
    load: tuple[int, ...] | None
    known: tuple[int, int]
    pace: Factors


class Choice(NamedTuple):
    """Places in `Asked.seen`, and blocks to reserve."""

    prefill: int
    decode: int
    blocks: int


@value
class Asked:
    """A question, and its answer; placed is None for: nowhere yet. request: its number. waited_ns:
    since it was accepted. output_tokens: delivered by attempts that were lost. waiting: requests
    that wait. usual_output: see `Pace`. slo, usual_slo: see `Request`."""

    request: int
    at_ns: int
    waited_ns: int
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    slo: Slo
    waiting: int
    usual_output: float
    seen: tuple[Sight, ...]
    placed: Choice | None
    usual_slo: Slo | None = None


@value
class Ended:
    """How a request went. state: completed, or the code of its error. ttft_s, tpot_s: as measured;
    None where there were no tokens for it."""

    request: int
    at_ns: int
    state: str
    output_tokens: int
    migrations: int
    ttft_s: float | None
    tpot_s: float | None


Entry = Asked | Ended
Write = Callable[[Entry], None]


@dataclass(slots=True, eq=False)
class _Asking:
    """One running request. refused: its answer was nowhere, for as long as it has waited since."""

    number: int
    refused: bool = False


class DecisionLog:
    """See the module. write: takes entries; quick, and never raises."""

    def __init__(self, write: Write, pace: Pace) -> None:
        self._write = write
        self._pace = pace
        self._requests = 0
        self._asking: dict[str, _Asking] = {}
        self._subjects: dict[str, Subject] = {}

    def asked(
        self,
        life: Lifecycle,
        placement: Placement | None,
        workers: Sequence[Worker],
        known: Known,
        now_ns: int,
    ) -> None:
        """The policy has answered where among `workers` the request goes."""
        request = life.request
        asking = self._asking.get(request.request_id)
        if asking is None:
            self._requests += 1
            asking = self._asking[request.request_id] = _Asking(self._requests)
        if placement is None and asking.refused:
            return
        asking.refused = placement is None
        choice = None
        if placement is not None:
            prefill = workers.index(placement.prefill)
            same = placement.decode is placement.prefill
            decode = prefill if same else workers.index(placement.decode)
            choice = Choice(prefill, decode, placement.blocks)
        self._write(
            Asked(
                asking.number,
                now_ns,
                now_ns - request.accepted_ns,
                len(request.prompt),
                life.output_tokens,
                request.max_tokens,
                request.slo,
                known.waiting,
                self._pace.usual_output,
                tuple([self._sight(worker, known) for worker in workers]),
                choice,
                request.usual_slo,
            )
        )

    def ended(self, life: Lifecycle, now_ns: int) -> None:
        """The request has its ending. Nothing is written of one that nobody was asked for."""
        asking = self._asking.pop(life.request.request_id, None)
        if asking is None:
            return
        marks, gaps = life.marks, life.output_tokens - 1
        ttft_s = tpot_s = None
        if marks.first_token_ns:
            ttft_s = seconds(marks.first_token_ns - marks.accepted_ns)
            if gaps > 0:
                tpot_s = seconds(marks.last_token_ns - marks.first_token_ns) / gaps
        state = "completed" if life.error is None else life.error.code.value
        number, output_tokens = asking.number, life.output_tokens
        self._write(Ended(number, now_ns, state, output_tokens, life.migrations, ttft_s, tpot_s))

    def check_integrity(self, running: Sequence[Lifecycle]) -> None:
        """Assert that nothing is kept of requests that have ended."""
        assert self._asking.keys() <= {life.request.request_id for life in running}

    def _sight(self, worker: Worker, known: Known) -> Sight:
        info, load = worker.info, worker.load
        subject = self._subjects.get(info.worker_id)
        if subject is None or subject.info is not info:
            subject = Subject(info, self._pace.described(info))
            self._subjects[info.worker_id] = subject
        # Who can reuse nothing has nothing.
        reusable = known.reusable_tokens(worker)
        return Sight(
            subject,
            _numbers_of(worker),
            None if load is None else _load_of(load),
            (known.cached_tokens(worker), known.stored_tokens(worker)) if reusable else _NOTHING,
            self._pace.factors(info),
        )


def recall(worker: Worker, sight: Sight) -> None:
    """Make `worker` for policies what it was when it was seen."""
    for name, number in zip(WORKER_NUMBERS, sight.numbers, strict=True):
        setattr(worker, name, number)
    worker.load = None
    if sight.load is not None:
        free, cached, inactive = sight.load
        worker.load = Load(
            free_blocks=free, cached_blocks=cached, num_blocks=worker.info.num_blocks, running=0,
            waiting=0, waiting_tokens=0, leaked_blocks=0, spilled_blocks=0,
            sessions_inactive=inactive, sessions_spilled=0, transfer_bytes=0, store_available=False,
        )  # fmt: skip
