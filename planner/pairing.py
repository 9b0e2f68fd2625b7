"""Matches prompt replicas with decode replicas: how many of each serve the highest rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from planner.links import Links
from planner.replicas import MixedReplica, Operating, PromptReplica
from planner.split import Mode, Pool, Split, Targets
from planner.workload import Workload

# Prompt replicas of each size that are paired: the best by themselves.
_KEPT = 3


@dataclass(frozen=True, slots=True)
class Pairing:
    """`x` prompt replicas and `y` decode replicas, and the rate of the weakest side."""

    prompt: PromptReplica
    x: int
    decode: MixedReplica
    y: int
    point: Operating
    rate: float
    bound: str

    @property
    def devices(self) -> int:
        return self.x * self.prompt.devices + self.y * self.decode.devices


@dataclass(frozen=True, slots=True)
class Matching:
    """What pairs share. moved: share of requests whose prompt is computed in the prefill pool."""

    workload: Workload
    targets: Targets
    links: Links
    devices: int
    moved: float = 1.0

    def best(
        self,
        prompts: Sequence[PromptReplica],
        decodes: Sequence[tuple[MixedReplica, Operating]],
    ) -> Pairing | None:
        """The pair of the highest rate, of fewest devices among equals.

        decodes: each with about the point at which it is run.
        """
        t, cv = self.targets, self.workload.arrival_cv

        @cache
        def rate_of(index: int, count: int) -> float:
            return prompts[index].rate_within(t.ttft_s, t.percentile, count, cv) / self.moved

        fitting = [i for i, p in enumerate(prompts) if p.devices < self.devices]
        kept = _best_of_each_size(fitting, lambda i: prompts[i].devices, lambda i: rate_of(i, 1))
        sharp = self._sharpened(decodes)
        best: Pairing | None = None
        for i in kept:
            for d, point in sharp:
                within = self._within(prompts[i], d, point)
                if within is None:
                    continue
                for x in self._counts(prompts[i], d, within, partial(rate_of, i)):
                    pairing = self._pair(prompts[i], x, rate_of(i, x), d, within)
                    if best is None or _better(pairing, best):
                        best = pairing
        return best

    def late_s(self, p: PromptReplica, d: MixedReplica) -> float:
        """What the mean time per token grows by, where KV comes later than the first token."""
        exposed = self.links.exposed_s(p.devices, d.devices, p.service.mean_s)
        return exposed * self.moved / max(self.workload.osl - 1, 1)

    def link_rate(self, devices: int) -> float:
        """Requests per second whose KV the links of so many devices carry."""
        return self.links.limit(devices, devices) / max(self.moved * self.links.request_bytes, 1.0)

    def settle(self, mode: Mode, pairing: Pairing, local_tokens: float = 0.0) -> Split:
        """The split of a pairing, with latencies at the rate that it serves."""
        t, cv = self.targets, self.workload.arrival_cv
        p, d, rate = pairing.prompt, pairing.decode, pairing.rate
        point = d.at_rate(rate / pairing.y, pairing.point)
        most = p.rate_within(t.ttft_s, t.percentile, pairing.x, cv) / self.moved
        senders, receivers = pairing.x * p.devices, pairing.y * d.devices
        late = self.late_s(p, d)
        pools = (
            Pool("prefill", p.cost.layout, pairing.x, p.chunk_tokens, 0.0, rate / most),
            Pool(
                "decode", d.cost.layout, pairing.y, d.chunk_tokens, point.batch,
                rate / (pairing.y * pairing.point.rate),
            ),
        )  # fmt: skip
        return Split(
            mode=mode,
            pools=pools,
            rate=rate,
            ttft_s=max(p.ttft(rate * self.moved, t.percentile, pairing.x, cv), point.ttft_s),
            tpot_s=point.tpot_s + late,
            tpot_mean_s=point.tpot_mean_s + late,
            osl=self.workload.osl,
            bound=pairing.bound,
            link_bytes_per_s=rate * self.moved * self.links.request_bytes,
            link_limit_bytes_per_s=self.links.limit(senders, receivers),
            local_tokens=local_tokens,
            prompt_share=point.prompt_share,
        )

    def _sharpened(
        self, decodes: Sequence[tuple[MixedReplica, Operating]]
    ) -> list[tuple[MixedReplica, Operating]]:
        """The best of each size, with its computed point; those whose next point of the curve is
        no better are passed over."""
        best: dict[int, tuple[MixedReplica, Operating]] = {}
        for d, near in sorted(decodes, key=lambda pair: -pair[1].rate):
            known = best.get(d.devices)
            if known is None or d.rate_beyond(near) > known[1].rate:
                point = d.sharpened(near, self.targets.ttft_s, self.targets.tpot_s)
                if known is None or point.rate > known[1].rate:
                    best[d.devices] = d, point
        return list(best.values())

    def _within(self, p: PromptReplica, d: MixedReplica, point: Operating) -> Operating | None:
        """`point`, or one that leaves time for the KV of this pair to arrive."""
        ttft, left = self.targets.ttft_s, self.targets.tpot_s - self.late_s(p, d)
        if point.tpot_s <= left:
            return point
        near = d.best_within(ttft, left)
        return None if near is None else d.sharpened(near, ttft, left)

    def _pair(
        self, p: PromptReplica, x: int, prompt_rate: float, d: MixedReplica, point: Operating
    ) -> Pairing:
        y = (self.devices - x * p.devices) // d.devices
        sides = {
            "prefill": prompt_rate,
            "decode": y * point.rate,
            "link": min(self.link_rate(x * p.devices), self.link_rate(y * d.devices)),
        }
        bound = min(sides, key=sides.__getitem__)
        # No more decode replicas than the other side can use, or than its links need.
        each = min(point.rate, self.link_rate(d.devices))
        return Pairing(p, x, d, min(y, max(1, math.ceil(sides[bound] / each - 1e-9))), point,
                       sides[bound], bound)  # fmt: skip

    def _counts(
        self, p: PromptReplica, d: MixedReplica, point: Operating, rate_of: Callable[[int], float]
    ) -> Iterator[int]:
        """Numbers of prompt replicas on either side of where prompts overtake answers: more of
        them compute and send more, and leave less to those that receive and decode."""

        def enough(x: int) -> bool:
            y = (self.devices - x * p.devices) // d.devices
            prompts = min(rate_of(x), self.link_rate(x * p.devices))
            return prompts >= min(y * point.rate, self.link_rate(y * d.devices))

        most = (self.devices - d.devices) // p.devices
        low, high = 0, most + 1  # not enough, and enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        yield from (x for x in (low, high) if 1 <= x <= most)


def _better(a: Pairing, b: Pairing) -> bool:
    return (round(a.rate, 9), -a.devices) > (round(b.rate, 9), -b.devices)


def _best_of_each_size(
    indices: Sequence[int] | range, size: Callable[[int], int], rate: Callable[[int], float]
) -> list[int]:
    by_size: dict[int, list[int]] = {}
    for index in indices:
        if rate(index) > 0:
            by_size.setdefault(size(index), []).append(index)
    return [
        index
        for group in by_size.values()
        for index in sorted(group, key=rate, reverse=True)[:_KEPT]
    ]
