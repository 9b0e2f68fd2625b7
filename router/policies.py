"""Ways of choosing a pair, besides `LeastLoaded` and `LeastCost`: by cached prefix, in turn, and by
two draws.

All choose among the same: prefill workers that take a prompt now, and decode workers that have
room and can be fed by one of those, or are aggregated and take the prompt themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eastwest.config import RouterConfig
from eastwest.types import Role
from router.cost_policy import DEFAULT_WEIGHTS, Costs, LeastCost, Weights
from router.fleet import Worker
from router.placement import (
    Known,
    LeastLoaded,
    Placement,
    PlacementPolicy,
    has_room,
    pair_load,
    prefill_load,
    takes_prompt,
)
from router.requests import Request

_SEED = 0
# Of a decode worker's running_max: how many more sequences than the least loaded one it may have
# and still be preferred for what it holds.
_IMBALANCE = 1 / 8


@dataclass(frozen=True, slots=True)
class _Choice:
    """Those that can serve, by name. sources: prefill workers that take a prompt, by kind."""

    sources: dict[str, list[Worker]]
    seats: list[Worker]

    @classmethod
    def of(cls, request: Request, workers: Sequence[Worker]) -> _Choice:
        """The choice among `workers`."""
        ordered = sorted(workers, key=lambda w: w.worker_id)
        sources: dict[str, list[Worker]] = {}
        for worker in ordered:
            if worker.info.role is Role.PREFILL and takes_prompt(worker):
                sources.setdefault(worker.kind, []).append(worker)
        seats = [
            w
            for w in ordered
            if w.decodes
            and (takes_prompt(w) if w.info.role is Role.AGGREGATED else w.kind in sources)
            and has_room(w, w.blocks_of(request))
        ]
        return cls(sources, seats)

    def source_of(self, seat: Worker, choose: Callable[[list[Worker]], Worker]) -> Worker:
        """Who prefills for `seat`."""
        return seat if seat.info.role is Role.AGGREGATED else choose(self.sources[seat.kind])


class PrefixAware:
    """The longest cached prefix, then least loaded.

    What a worker holds counts only while it is not much busier than the least loaded one: by a
    step of waiting prompt tokens, or by an eighth of the sequences that it can run at once. Of a
    pair, what the prefill worker holds comes first: it saves compute, the decode worker's a
    transfer.
    """

    def place(self, request: Request, workers: Sequence[Worker], known: Known) -> Placement | None:
        choice = _Choice.of(request, workers)
        if not choice.seats:
            return None

        def source(candidates: list[Worker]) -> Worker:
            least = min(w.waiting_tokens for w in candidates)
            near = [w for w in candidates if w.waiting_tokens <= least + w.info.step_tokens]
            return min(near, key=lambda w: (-known.cached_tokens(w), prefill_load(w)))

        best = {kind: source(candidates) for kind, candidates in choice.sources.items()}
        pairs = [(choice.source_of(w, lambda c: best[c[0].kind]), w) for w in choice.seats]
        least = min(w.decoding_sequences for _, w in pairs)
        near = [p for p in pairs if p[1].decoding_sequences <= least + _spread(p[1])]
        prefill, decode = min(
            near,
            key=lambda p: (
                -known.cached_tokens(p[0]),
                -known.cached_tokens(p[1]),
                pair_load(*p),
            ),
        )
        return Placement(prefill, decode, decode.blocks_of(request))


class RoundRobin:
    """Each worker in turn, by name; those that cannot serve at present are passed over."""

    def __init__(self) -> None:
        self._prefill = ""
        self._decode = ""

    def place(self, request: Request, workers: Sequence[Worker], known: Known) -> Placement | None:
        choice = _Choice.of(request, workers)
        if not choice.seats:
            return None
        decode = _after(self._decode, choice.seats)
        prefill = choice.source_of(decode, lambda workers: _after(self._prefill, workers))
        self._prefill, self._decode = prefill.worker_id, decode.worker_id
        return Placement(prefill, decode, decode.blocks_of(request))


class PowerOfTwo:
    """The less loaded of two that are drawn, for each phase."""

    def __init__(self, seed: int = _SEED) -> None:
        self._rng = random.Random(seed)

    def place(self, request: Request, workers: Sequence[Worker], known: Known) -> Placement | None:
        choice = _Choice.of(request, workers)
        if not choice.seats:
            return None
        weighed = self._two(choice.seats)
        decode = min(weighed, key=lambda w: (w.decoding_sequences, -w.room_blocks))

        def source(workers: list[Worker]) -> Worker:
            drawn = self._two(workers)
            weighed.extend(drawn)
            return min(drawn, key=prefill_load)

        prefill = choice.source_of(decode, source)
        return Placement(prefill, decode, decode.blocks_of(request), weighed=tuple(weighed))

    def _two(self, workers: list[Worker]) -> list[Worker]:
        return self._rng.sample(workers, min(2, len(workers)))


def policy_of(
    config: RouterConfig, costs: Costs, weights: Weights = DEFAULT_WEIGHTS
) -> PlacementPolicy:
    """The policy that ``router.policy`` names. weights: of one that weighs."""
    policies: dict[str, Callable[[], PlacementPolicy]] = {
        "cost": lambda: LeastCost(costs, conditional=config.conditional, weights=weights),
        "least_loaded": LeastLoaded,
        "prefix": PrefixAware,
        "round_robin": RoundRobin,
        "power_of_two": PowerOfTwo,
    }
    return policies[config.policy]()


def _spread(worker: Worker) -> int:
    return max(1, int(worker.info.running_max * _IMBALANCE))


def _after(last: str, workers: list[Worker]) -> Worker:
    """The first behind `last`, or the first of all; `workers` are in order of their names."""
    return next((w for w in workers if w.worker_id > last), workers[0])
