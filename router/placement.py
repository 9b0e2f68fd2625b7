"""Which prefill and decode worker serve a request: the policy, and what every policy must honour.

An aggregated worker serves both phases itself; it is never paired with another. A pair must be
of one kind (`fleet.Kind`), or the KV of one would mean nothing to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eastwest.types import Role
from router.fleet import Kind, Worker
from router.requests import Request


@dataclass(frozen=True, slots=True)
class Placement:
    """Who serves a request; one and the same worker where that is aggregated.

    blocks: KV blocks to be reserved on the decode worker.
    """

    prefill: Worker
    decode: Worker
    blocks: int


class PlacementPolicy(Protocol):
    """Chooses workers. Deterministic, and quick: it is asked whenever something has changed."""

    def place(self, request: Request, workers: Sequence[Worker]) -> Placement | None:
        """A placement among `workers` (up, and none has just refused), or None: not at present.

        Workers are read, never changed.
        """


def can_serve(workers: Sequence[Worker]) -> bool:
    """Whether these workers hold a pair, or an aggregated worker, however loaded."""
    prefill = {w.kind for w in workers if w.info.role is Role.PREFILL}
    return any(w.decodes and (w.info.role is Role.AGGREGATED or w.kind in prefill) for w in workers)


def has_room(worker: Worker, blocks: int) -> bool:
    """Whether asking this decode worker for `blocks` is worth it.

    One without any of our work is asked whatever it has reported: it alone knows what it can
    spill, and nothing of ours would end there to make it report anew.
    """
    room = worker.room_blocks if worker.sequences else worker.info.num_blocks
    return blocks <= room


class LeastLoaded:
    """Fewest sequences to share decode steps with, then fewest prompt tokens to wait for, then
    most free blocks, then the lesser name."""

    def place(self, request: Request, workers: Sequence[Worker]) -> Placement | None:
        prefill: dict[Kind, Worker] = {}
        for worker in workers:
            if worker.info.role is Role.PREFILL:
                best = prefill.setdefault(worker.kind, worker)
                if _prefill_load(worker) < _prefill_load(best):
                    prefill[worker.kind] = worker
        chosen: Placement | None = None
        for worker in workers:
            source = worker if worker.info.role is Role.AGGREGATED else prefill.get(worker.kind)
            if not worker.decodes or source is None:
                continue
            candidate = Placement(source, worker, worker.blocks_of(request))
            if has_room(worker, candidate.blocks) and (
                chosen is None or _load(candidate) < _load(chosen)
            ):
                chosen = candidate
        return chosen


def _prefill_load(worker: Worker) -> tuple[int, str]:
    return worker.waiting_tokens, worker.worker_id


def _load(placement: Placement) -> tuple[int, int, int, str]:
    prefill, decode = placement.prefill, placement.decode
    return (
        decode.decoding_sequences,
        prefill.waiting_tokens,
        -decode.room_blocks,
        decode.worker_id,
    )
