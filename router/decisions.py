"""Remembers why the latest requests went where they went, for those who ask.

Of each request: every placement with what was known when it was made, why its attempts were lost,
and how it ended. Kept are the latest `requests_max` requests, of each at most `DECISIONS_KEPT`
placements (the first, and the latest), of each at most `PREDICTIONS_KEPT` pairs and twice
`WORKERS_KEPT` workers: about 4 kB each. Nothing here keeps a prompt.

The recording side is on the way of every request, so it keeps references and bare numbers, and
`router.explaining` makes words of them when asked.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from eastwest.errors import EastWestError
from eastwest.types import Role, Slo
from router.decision_log import DecisionLog
from router.fleet import Worker
from router.lifecycle import Lifecycle, State
from router.placement import Candidate, Known, Placement, prefill_load
from router.requests import Marks, Request

DECISIONS_KEPT = 8
PREDICTIONS_KEPT = 8
WORKERS_KEPT = 4

# What `eastwest.explanation.WorkerEstimate` is made of.
Estimate = tuple[str, int, Role, int, int, int, int, int]


@dataclass(slots=True, eq=False)
class Placed:
    """One placement, as it was made. candidates: the best of those considered, and the chosen one;
    left_out: how many others there were. loss: why its attempt was lost, if it was."""

    at_ns: int
    waiting: int
    given_tokens: int
    placement: Placement
    candidates: tuple[Candidate, ...]
    left_out: int
    estimates: list[Estimate]
    workers_up: int
    loss: str = ""
    lost_ns: int | None = None


@dataclass(slots=True, eq=False)
class Record:
    """One request. life: while it runs; what follows it is set when it has ended."""

    client_id: str
    salt: str
    accepted_ns: int
    prompt_tokens: int
    max_tokens: int
    slo: Slo
    life: Lifecycle | None
    state: str = ""
    message: str = ""
    output_tokens: int = 0
    migrations: int = 0
    marks: Marks | None = None
    ended_ns: int | None = None
    placed: list[Placed] = field(default_factory=list)
    left_out: int = 0


class Decisions:
    """See the module. policy: its name. log: is told too, of every request. Called by the
    scheduler, and by whoever explains."""

    def __init__(self, policy: str, requests_max: int, log: DecisionLog | None = None) -> None:
        self.policy = policy
        self.requests_max = requests_max
        self._log = log
        self._records: OrderedDict[str, Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    # What the scheduler tells.

    def entered(self, life: Lifecycle) -> None:
        """A new request waits."""
        self._add(life.request, life)

    def refused(self, request: Request, error: EastWestError, now_ns: int) -> None:
        """A new request was not let in."""
        if (record := self._add(request, None)) is not None:
            record.state, record.message, record.ended_ns = "refused", error.message, now_ns

    def asked(
        self,
        life: Lifecycle,
        placement: Placement | None,
        workers: Sequence[Worker],
        known: Known,
        now_ns: int,
    ) -> None:
        """The policy has answered where among `workers` the request goes."""
        if self._log is not None:
            self._log.asked(life, placement, workers, known, now_ns)
        if placement is not None:
            self._placed(life, placement, workers, known, now_ns)

    def _placed(
        self,
        life: Lifecycle,
        placement: Placement,
        workers: Sequence[Worker],
        known: Known,
        now_ns: int,
    ) -> None:
        record = self._records.get(life.request.request_id)
        if record is None:
            return
        considered = placement.considered
        kept = considered[:PREDICTIONS_KEPT]
        if considered and not any(_is(c, placement) for c in kept):
            kept = (*kept[:-1], next(c for c in considered if _is(c, placement)))
        record.placed.append(
            Placed(
                now_ns,
                known.waiting,
                record.prompt_tokens + life.output_tokens,
                Placement(
                    placement.prefill,
                    placement.decode,
                    placement.blocks,
                    placement.prefill_known_tokens,
                    placement.decode_known_tokens,
                    lender=placement.lender,
                ),
                kept,
                len(considered) - len(kept),
                _estimates(placement, kept, workers, known),
                len(workers),
            )
        )
        if len(record.placed) > DECISIONS_KEPT:
            del record.placed[1]
            record.left_out += 1

    def returned(self, life: Lifecycle, now_ns: int) -> None:
        """The request's attempt is lost, and it waits again."""
        record = self._records.get(life.request.request_id)
        if record is not None and record.placed:
            assert life.loss is not None
            latest = record.placed[-1]
            latest.loss, latest.lost_ns = life.loss.message, now_ns

    def ended(self, life: Lifecycle, now_ns: int) -> None:
        """The request has its ending."""
        if self._log is not None:
            self._log.ended(life, now_ns)
        record = self._records.get(life.request.request_id)
        if record is None:
            return
        record.life = None
        record.state = "completed" if life.error is None else "failed"
        if life.error is not None:
            phase = f" (in phase {life.error.phase})" if life.error.phase else ""
            record.message = f"{life.error.code.value}: {life.error.message}{phase}"
        record.output_tokens, record.migrations = life.output_tokens, life.migrations
        record.marks, record.ended_ns = life.marks, now_ns

    # What others ask.

    def find(self, salt: str, client_id: str) -> Record | None:
        """The latest request of this tenant under this name, where it is still kept."""
        for record in reversed(self._records.values()):
            if record.client_id == client_id and record.salt == salt:
                return record
        return None

    def check_integrity(self, running: Sequence[Lifecycle]) -> None:
        """Assert the bounds, and that what is said to run does."""
        assert len(self._records) <= self.requests_max
        if self._log is not None:
            self._log.check_integrity(running)
        lives = {life.request.request_id: life for life in running}
        for request_id, record in self._records.items():
            assert record.life is None or lives.get(request_id) is record.life
            assert len(record.placed) <= DECISIONS_KEPT
            for placed in record.placed:
                assert len(placed.candidates) <= PREDICTIONS_KEPT
                assert len(placed.estimates) <= 2 * WORKERS_KEPT
            waits = record.life is not None and record.life.state is State.QUEUED
            assert not waits or not record.placed or record.placed[-1].lost_ns is not None

    def _add(self, request: Request, life: Lifecycle | None) -> Record | None:
        if not self.requests_max:
            return None
        record = Record(
            request.client_id or request.request_id,
            request.salt,
            request.accepted_ns,
            len(request.prompt),
            request.max_tokens,
            request.slo,
            life,
        )
        self._records[request.request_id] = record
        self._records.move_to_end(request.request_id)
        if len(self._records) > self.requests_max:
            self._records.popitem(last=False)
        return record


def _is(candidate: Candidate, placement: Placement) -> bool:
    return candidate.prefill is placement.prefill and candidate.decode is placement.decode


def _estimates(
    placement: Placement,
    candidates: Sequence[Candidate],
    workers: Sequence[Worker],
    known: Known,
) -> list[Estimate]:
    """Of the pair and those that it was held against, each once, the pair first. Where a policy
    says neither what it predicts nor whom it drew, those are the least loaded of each phase."""
    others: list[Worker] = []
    if candidates:
        for candidate in candidates:
            others += (candidate.prefill, candidate.decode)
    elif placement.weighed:
        others += placement.weighed
    else:
        sources = [w for w in workers if w.info.role is not Role.DECODE]
        others += heapq.nsmallest(WORKERS_KEPT - 1, sources, key=prefill_load)
        seats = [w for w in workers if w.decodes]
        others += heapq.nsmallest(WORKERS_KEPT - 1, seats, key=_decode_load)
    chosen = dict.fromkeys((placement.prefill, placement.decode, *others))
    return [_estimate(worker, known) for worker in list(chosen)[: 2 * WORKERS_KEPT]]


def _decode_load(worker: Worker) -> tuple[int, str]:
    return worker.sequences + worker.foreign_sequences, worker.worker_id


def _estimate(worker: Worker, known: Known) -> Estimate:
    info = worker.info
    return (
        info.worker_id,
        info.epoch,
        info.role,
        worker.waiting_tokens,
        worker.decoding_sequences,
        worker.context_tokens,
        worker.room_blocks,
        known.cached_tokens(worker),
    )
