"""Matches prompt replicas with decode replicas: how many of each serve the highest rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from planner.links import Links
from planner.replicas import MixedReplica, Operating, PromptReplica
from planner.split import Mode, Pool, Split, Targets
from planner.workload import Workload

# Replicas of each size that are paired: the best by rate for each device.
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

        decodes: each with the point at which it is run.
        """
        t, cv = self.targets, self.workload.arrival_cv

        @cache
        def rate_of(index: int, count: int) -> float:
            return prompts[index].rate_within(t.ttft_s, t.percentile, count, cv) / self.moved

        fitting = [i for i, p in enumerate(prompts) if p.devices < self.devices]
        kept = _best_of_each_size(fitting, lambda i: prompts[i].devices, lambda i: rate_of(i, 1))
        points = _best_of_each_size(
            range(len(decodes)), lambda i: decodes[i][0].devices, lambda i: decodes[i][1].rate
        )
        best: Pairing | None = None
        for i in kept:
            for d, point in (decodes[j] for j in points):
                for x in self._counts(prompts[i].devices, d.devices, rate_of(i, 1), point.rate):
                    pairing = self._pair(prompts[i], x, rate_of(i, x), d, point)
                    if best is None or _better(pairing, best):
                        best = pairing
        return best

    def settle(self, mode: Mode, pairing: Pairing, local_tokens: float = 0.0) -> Split:
        """The split of a pairing, with latencies at the rate that it serves."""
        t, cv = self.targets, self.workload.arrival_cv
        p, d, rate = pairing.prompt, pairing.decode, pairing.rate
        point = d.at_rate(rate / pairing.y)
        most = p.rate_within(t.ttft_s, t.percentile, pairing.x, cv) / self.moved
        senders, receivers = pairing.x * p.devices, pairing.y * d.devices
        exposed = self.links.exposed_s(p.devices, d.devices, p.service.mean_s)
        late = exposed * self.moved / max(self.workload.osl - 1, 1)
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

    def _pair(
        self, p: PromptReplica, x: int, prompt_rate: float, d: MixedReplica, point: Operating
    ) -> Pairing:
        y = (self.devices - x * p.devices) // d.devices
        moved_bytes = self.moved * self.links.request_bytes
        sides = {
            "prefill": prompt_rate,
            "decode": y * point.rate,
            "link": self.links.limit(x * p.devices, y * d.devices) / max(moved_bytes, 1.0),
        }
        bound = min(sides, key=sides.__getitem__)
        # No more replicas of the stronger side than the weaker one can use.
        if bound == "prefill" and point.rate > 0:
            y = min(y, max(1, -int(-prompt_rate // point.rate)))
        return Pairing(p, x, d, y, point, sides[bound], bound)

    def _counts(
        self, prompt_devices: int, decode_devices: int, prompt_rate: float, decode_rate: float
    ) -> Iterator[int]:
        """Numbers of prompt replicas around that which balances the two rates."""
        most = (self.devices - decode_devices) // prompt_devices
        if most < 1 or prompt_rate <= 0:
            return
        per_rate = prompt_devices / prompt_rate + decode_devices / decode_rate
        balanced = self.devices / per_rate / prompt_rate
        near = {int(balanced) + step for step in (-1, 0, 1, 2)}
        # What is left after whole decode replicas, too.
        whole = round((self.devices - balanced * prompt_devices) / decode_devices)
        near |= {
            (self.devices - (whole + s) * decode_devices) // prompt_devices for s in (-1, 0, 1)
        }
        yield from sorted(x for x in near if 1 <= x <= most)


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
