"""Builders of what enters the router's scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eastwest.clock import ns
from eastwest.types import SamplingParams
from router.fleet import Worker
from router.loading import Loans, reusable
from router.placement import Loan
from router.requests import Request


@dataclass(frozen=True, slots=True)
class SomeKnown:
    """Implements `Known`: cached tokens by worker id, none for others; stored ones for all.
    workers: who may lend."""

    cached: Mapping[str, int] = field(default_factory=dict)
    waiting: int = 1
    stored: int = 0
    now_ns: int = 0
    workers: Sequence[Worker] = ()

    def cached_tokens(self, worker: Worker) -> int:
        return self.cached.get(worker.worker_id, 0)

    def stored_tokens(self, worker: Worker) -> int:
        return self.stored

    def loan(self, worker: Worker) -> Loan | None:
        return Loans((w, self.cached_tokens(w)) for w in self.workers).to(worker)

    def reusable_tokens(self, worker: Worker) -> int:
        return reusable(self, worker)


def a_request(
    request_id: str = "r1",
    *,
    tokens: int = 300,
    max_tokens: int = 10,
    output_tokens: int | None = None,
    accepted_ns: int = 0,
    timeout_s: float = 600.0,
    sampling: SamplingParams | None = None,
) -> Request:
    """A request with a prompt of `tokens` tokens, greedy by default.

    output_tokens: after how many a simulated worker ends it, if not max_tokens.
    """
    first = max_tokens if output_tokens is None else output_tokens
    return Request(
        request_id=request_id,
        salt="",
        session_id="",
        prompt=(first, *range(1, tokens)),
        sampling=sampling or SamplingParams(temperature=0.0, seed=0),
        max_tokens=max_tokens,
        accepted_ns=accepted_ns,
        deadline_ns=accepted_ns + ns(timeout_s),
    )
