"""Weighs loading KV against computing it: from where, how much, and by which worker.

What a worker has not in memory may be in the store, or in the memory of another worker that keeps
KV in the same form, which lends it. A prompt's front can be computed while its back is loaded,
until the two ends meet. What is behind both is computed after that. So of what can be loaded,
everything is, or nothing, or what is behind the place where both ends come at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from heapq import nsmallest
from typing import NamedTuple, Protocol

from eastwest.layout import KVSpec
from eastwest.messages import WorkerInfo
from eastwest.ports import ServingCosts
from router.fleet import Worker
from router.placement import Known, Loan

# Both ends are worth their trouble where they take at most so much of the better one.
_WORTH = 0.9


class LoadingCosts(ServingCosts, Protocol):
    """What weighing asks besides."""

    def fetch_s(self, lender: WorkerInfo, worker: WorkerInfo, tokens: int) -> float:
        """Reading the KV of `tokens` out of another worker's memory."""


class Way(NamedTuple):
    """How a worker comes to the KV of what is given.

    meet_tokens, lender: see `eastwest.messages.Prefill`. present_tokens: those that are not
    computed. wait_s: until they are there, as far as no compute of this prompt hides it. compute_s:
    of the others.
    """

    meet_tokens: int
    present_tokens: int
    wait_s: float
    compute_s: float
    lender: Worker | None = None

    @property
    def seconds(self) -> float:
        return self.wait_s + self.compute_s


class Loans:
    """Who can lend a prompt's KV to whom. held: leading tokens that workers have in memory."""

    def __init__(self, held: Iterable[tuple[Worker, int]]) -> None:
        # For each form of KV, who has most, and who has next to that.
        self._most: dict[tuple[str, int, KVSpec], list[Loan]] = {}
        for worker, tokens in held:
            if tokens:
                self._most.setdefault(_form(worker), []).append(Loan(worker, tokens))
        for form, loans in self._most.items():
            self._most[form] = nsmallest(2, loans, key=lambda x: (-x.tokens, x.lender.worker_id))

    def to(self, worker: Worker) -> Loan | None:
        """The best for `worker`; None where nobody else has anything."""
        for loan in self._most.get(_form(worker), ()) if self._most else ():
            if loan.lender is not worker:
                return loan
        return None


def _form(worker: Worker) -> tuple[str, int, KVSpec]:
    return worker.kind, worker.info.block_tokens, worker.info.model.kv


def reusable(known: Known, worker: Worker) -> int:
    """Of `Known`, from the rest of it."""
    loan = known.loan(worker)
    lent = loan.tokens if loan is not None else 0
    return max(known.cached_tokens(worker), known.stored_tokens(worker), lent)


def weigh(costs: LoadingCosts, worker: Worker, given: int, known: Known, queue_s: float) -> Way:
    """The quickest way. given: tokens of the prompt. queue_s: what is computed there before its
    turn, while it loads already."""
    info, cached = worker.info, min(known.cached_tokens(worker), given - 1)
    best = Way(given, cached, queue_s, costs.prompt_s(info, given - cached, cached))
    loadable = False
    stored = min(known.stored_tokens(worker), given - 1)
    if stored > cached:
        loadable = True
        load_s = partial(costs.load_s, info)
        best = _better(costs, info, best, (given, cached, stored), load_s, queue_s, None)
    loan = known.loan(worker)
    if loan is not None and (lent := min(loan.tokens, given - 1)) > cached:
        loadable = True
        load_s = partial(costs.fetch_s, loan.lender.info, info)
        best = _better(costs, info, best, (given, cached, lent), load_s, queue_s, loan.lender)
    return best if loadable else best._replace(meet_tokens=0)


def _better(
    costs: ServingCosts,
    worker: WorkerInfo,
    best: Way,
    tokens: tuple[int, int, int],
    load_s: Callable[[int], float],
    queue_s: float,
    lender: Worker | None,
) -> Way:
    """`best`, or loading from one source, or that and computing. tokens: given; the first ones that
    are there; the first ones that can be loaded."""
    given, cached, there = tokens
    rest_s = costs.prompt_s(worker, given - there, there)
    loaded = Way(0, there, max(queue_s, load_s(there - cached)), rest_s, lender)
    best = min(loaded, best, key=lambda way: way.seconds)
    meet = _meeting(costs, worker, cached, there, load_s, queue_s)
    front_s = costs.prompt_s(worker, meet - cached, cached)
    met_s = max(queue_s + front_s, load_s(there - meet))
    both = Way(meet, cached + there - meet, met_s - front_s, front_s + rest_s, lender)
    return both if both.seconds <= _WORTH * best.seconds else best


def _meeting(
    costs: ServingCosts,
    worker: WorkerInfo,
    cached: int,
    stored: int,
    load_s: Callable[[int], float],
    queue_s: float,
) -> int:
    """Where computing from `cached` on has come when loading has come there from `stored`."""
    size = worker.block_tokens
    low, high = 0, (stored - cached) // size
    while low < high:
        middle = (low + high) // 2
        front_s = queue_s + costs.prompt_s(worker, middle * size, cached)
        if front_s < load_s(stored - cached - middle * size):
            low = middle + 1
        else:
            high = middle
    return cached + low * size


def leaves_stored(
    costs: ServingCosts, prefill: Worker, decode: Worker, given: int, known: Known, prefill_s: float
) -> bool:
    """Whether a decode worker gets stored KV from the prefill worker, which takes `prefill_s`.
    Otherwise it loads by itself first, so that less is left to move after the first token."""
    here, stored = known.cached_tokens(decode), known.stored_tokens(decode)
    if prefill is decode or stored <= here:
        return True
    with_it, without = (
        max(0.0, costs.transfer_s(prefill.info, decode.info, given - there) - prefill_s)
        for there in (here, stored)
    )
    return costs.load_s(decode.info, stored - here) >= with_it - without
