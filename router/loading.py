"""Weighs loading stored KV against computing it: how much of which, and by which worker.

A prompt's front can be computed while its stored back is loaded, until the two ends meet. What is
behind both is computed after that. So of what is stored, everything is loaded, or nothing, or what
is behind the place where both ends come at the same time.
"""

from __future__ import annotations

from typing import NamedTuple

from eastwest.messages import WorkerInfo
from eastwest.ports import ServingCosts
from router.fleet import Worker
from router.placement import Known

# Both ends are worth their trouble where they take at most so much of the better one.
_WORTH = 0.9


class Way(NamedTuple):
    """How a worker comes to the KV of what is given.

    meet_tokens: see `eastwest.messages.Prefill`. present_tokens: those that are not computed.
    wait_s: until they are there, as far as no compute of this prompt hides it. compute_s: of the
    others.
    """

    meet_tokens: int
    present_tokens: int
    wait_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        return self.wait_s + self.compute_s


def weigh(
    costs: ServingCosts, worker: WorkerInfo, given: int, cached: int, stored: int, queue_s: float
) -> Way:
    """The quickest way. given: tokens of the prompt, the first `cached` of which the worker has in
    memory; the store has the first `stored`. queue_s: what is computed there before its turn, while
    it loads already."""
    cached, stored = min(cached, given - 1), min(stored, given - 1)
    computed = Way(given, cached, queue_s, costs.prompt_s(worker, given - cached, cached))
    if stored <= cached:
        return computed._replace(meet_tokens=0)
    rest_s = costs.prompt_s(worker, given - stored, stored)
    loaded = Way(0, stored, max(queue_s, costs.load_s(worker, stored - cached)), rest_s)
    best = min(loaded, computed, key=lambda way: way.seconds)
    meet = _meeting(costs, worker, cached, stored, queue_s)
    front_s = costs.prompt_s(worker, meet - cached, cached)
    met_s = max(queue_s + front_s, costs.load_s(worker, stored - meet))
    both = Way(meet, cached + stored - meet, met_s - front_s, front_s + rest_s)
    return both if both.seconds <= _WORTH * best.seconds else best


def _meeting(
    costs: ServingCosts, worker: WorkerInfo, cached: int, stored: int, queue_s: float
) -> int:
    """Where computing from `cached` on has come when loading has come there from `stored`."""
    size = worker.block_tokens
    low, high = 0, (stored - cached) // size
    while low < high:
        middle = (low + high) // 2
        front_s = queue_s + costs.prompt_s(worker, middle * size, cached)
        if front_s < costs.load_s(worker, stored - cached - middle * size):
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
