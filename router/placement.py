"""Which prefill and decode worker serve a request: the policy, and what every policy must honour.

An aggregated worker serves both phases itself; it is never paired with another. A pair must be
of one kind (`Worker.kind`), or the KV of one would mean nothing to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from eastwest.types import Role
from router.fleet import Worker
from router.requests import Request

# Prompt tokens that may wait at a prefill worker, in steps of it.
STEPS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is predicted of a request at a pair.

    known_tokens: leading prompt tokens whose KV the prefill worker has. Seconds: queue_s until its
    prompt's turn, prefill_s of computing the rest, transfer_s of moving KV that no compute hides,
    step_s of a decode step with it. own, others: what it and others lose, in shares of targets.
    """

    prefill: Worker
    decode: Worker
    known_tokens: int
    queue_s: float
    prefill_s: float
    transfer_s: float
    step_s: float
    own: float
    others: float

    @property
    def score(self) -> float:
        """Less is better."""
        return self.own + self.others

    @property
    def diverted(self) -> bool:
        """Whether a decode worker would prefill."""
        return self.prefill.info.role is Role.DECODE


@dataclass(frozen=True, slots=True)
class Placement:
    """Who serves a request; one and the same worker where nothing is to move.

    blocks: KV blocks to be reserved on the decode worker. prefill_known_tokens,
    decode_known_tokens: prompt tokens whose KV each is thought to have, or to load.
    meet_tokens, lender, leave_stored: how it is loaded, see `Prefill` and `Reserve`.
    considered: what was predicted of it and of other pairs, best first, where the policy predicts.
    weighed: those that were drawn, where the policy does not look at all.
    """

    prefill: Worker
    decode: Worker
    blocks: int
    prefill_known_tokens: int = 0
    decode_known_tokens: int = 0
    meet_tokens: int = 0
    lender: Worker | None = None
    leave_stored: bool = True
    considered: tuple[Candidate, ...] = ()
    weighed: tuple[Worker, ...] = ()


class Loan(NamedTuple):
    """What another worker has in memory that keeps KV in the same form: so many leading tokens."""

    lender: Worker
    tokens: int


class Known(Protocol):
    """What is known around a request. waiting: how many requests wait, this one included. now_ns:
    when it is asked.

    Of its prompt on workers there are hints, which may be late or wrong. Asking for the first time
    costs a look-up, so ask when something depends on it."""

    @property
    def waiting(self) -> int: ...
    @property
    def now_ns(self) -> int: ...

    def cached_tokens(self, worker: Worker) -> int:
        """Leading prompt tokens whose KV is in the worker's memory."""

    def stored_tokens(self, worker: Worker) -> int:
        """Leading prompt tokens whose KV the worker can load from the store."""

    def loan(self, worker: Worker) -> Loan | None:
        """The best that another one of the workers asked about can lend it; None for nothing."""

    def reusable_tokens(self, worker: Worker) -> int:
        """Leading prompt tokens whose KV the worker has or can load from somewhere."""


class PlacementPolicy(Protocol):
    """Chooses workers. Deterministic, and quick: it is asked whenever something has changed."""

    def place(self, request: Request, workers: Sequence[Worker], known: Known) -> Placement | None:
        """A placement among `workers` (up, and none has just refused), or None: not at present.

        Workers are read, never changed.
        """


def can_serve(workers: Sequence[Worker]) -> bool:
    """Whether these workers hold a pair, or an aggregated worker, however loaded."""
    prefill = {w.kind for w in workers if w.info.role is Role.PREFILL}
    return any(w.decodes and (w.info.role is Role.AGGREGATED or w.kind in prefill) for w in workers)


def spared(
    workers: Sequence[Worker], failed_on: Sequence[Worker], suspects: Sequence[Worker]
) -> Sequence[Worker]:
    """Those of `workers` that neither failed nor are suspected of it; or as many as can serve."""
    for shunned in ([*failed_on, *suspects], failed_on, suspects):
        others = [w for w in workers if w not in shunned]
        if shunned and can_serve(others):
            return others
    return workers


def has_room(worker: Worker, blocks: int) -> bool:
    """Whether asking this decode worker for `blocks` is worth it.

    Where the estimate says no, the worker may still make room by spilling sessions, which it does
    only when asked; and where it has none of our work, nothing of ours will end there to change
    the estimate. Such a worker is asked for one reservation at a time.
    """
    if blocks <= worker.room_blocks:
        return True
    spillable = worker.load is not None and worker.load.sessions_inactive > 0
    may_ask = worker.asked_blocks == 0 and (spillable or worker.sequences == 0)
    return may_ask and blocks <= worker.info.sequence_blocks_max


def takes_prompt(worker: Worker) -> bool:
    """Whether a prompt should be placed on this prefill worker now, rather than wait here.

    It is kept busy with a step ahead of the one that runs, so that reservations are made while it
    computes; any more would only pin memory on decode workers.
    """
    return worker.prompt_tokens < STEPS_AHEAD * worker.info.step_tokens


class LeastLoaded:
    """Fewest sequences to share decode steps with, then fewest prompt tokens to wait for, then
    most free blocks, then the lesser name."""

    def place(self, request: Request, workers: Sequence[Worker], known: Known) -> Placement | None:
        prefill: dict[str, Worker] = {}
        for worker in workers:
            if worker.info.role is Role.PREFILL and takes_prompt(worker):
                best = prefill.get(worker.kind)
                if best is None or prefill_load(worker) < prefill_load(best):
                    prefill[worker.kind] = worker
        chosen: Placement | None = None
        least = None
        for worker in workers:
            source = worker if worker.info.role is Role.AGGREGATED else prefill.get(worker.kind)
            if source is None or not worker.decodes or not takes_prompt(source):
                continue
            load = pair_load(source, worker)
            if least is None or load < least:
                blocks = worker.blocks_of(request)
                if has_room(worker, blocks):
                    chosen, least = Placement(source, worker, blocks), load
        return chosen


def prefill_load(worker: Worker) -> tuple[int, str]:
    """What a prompt waits for at a prefill worker; less is better."""
    return worker.waiting_tokens, worker.worker_id


def pair_load(prefill: Worker, decode: Worker) -> tuple[int, int, int, str]:
    """What a request finds at a pair; less is better."""
    return (
        decode.decoding_sequences,
        prefill.waiting_tokens,
        -decode.room_blocks,
        decode.worker_id,
    )
