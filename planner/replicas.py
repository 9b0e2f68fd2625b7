"""What one replica can do: prompts alone, or decode steps with any share of prompts among them.

`PromptReplica` computes prompts only. `MixedReplica` decodes, and computes the prompts of a share
of its own requests between: none in a decode pool, all in aggregated serving, the short ones in
conditional disaggregation. A role is a budget; the formulas are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.closed_loop import chunks
from planner.cost import CostModel, Row
from planner.memory import sequences_that_fit
from planner.queueing import Service, attained, latency_at, wait
from planner.workload import RequestClass, Workload

# Room is kept for more sequences than the mean: the batch is about Poisson.
_ROOM_Z = 2.33


class PromptReplica:
    """A replica that only computes prompts, at most `chunk_tokens` of a group in a step.

    Each data-parallel group is a server: groups step together, and each has prompts of its own.
    """

    def __init__(self, cost: CostModel, classes: Sequence[RequestClass], chunk_tokens: int) -> None:
        self.cost = cost
        self.chunk_tokens = chunk_tokens
        total = sum(c.share for c in classes)
        single = _Prompts(cost, classes, chunk_tokens, alone=True)
        busy = _Prompts(cost, classes, chunk_tokens, alone=False)
        self.latency = tuple((single.seconds(c), c.share / total) for c in classes)
        self.service = Service.of([(busy.seconds(c), c.share / total) for c in classes])

    @property
    def devices(self) -> int:
        return self.cost.layout.world_size

    def rate_within(
        self, ttft_s: float, percentile: float, replicas: int, arrival_cv: float
    ) -> float:
        """The highest rate at which `percentile` of requests to `replicas` of these have their
        first token within `ttft_s`; 0 where none has."""
        overhead = self.cost.stack.request_s
        servers = replicas * self.cost.layout.dp
        top = servers / self.service.mean_s

        def meets(rate: float) -> bool:
            waiting = wait(servers, rate, self.service, arrival_cv)
            if waiting is None:
                return False
            return attained(ttft_s - overhead, self.latency, waiting) >= percentile

        if not meets(0.0):
            return 0.0
        return _highest(meets, top)

    def ttft(self, rate: float, percentile: float, replicas: int, arrival_cv: float) -> float:
        """The time to first token that `percentile` of requests stay within at `rate`."""
        waiting = wait(replicas * self.cost.layout.dp, rate, self.service, arrival_cv)
        if waiting is None:
            return math.inf
        return self.cost.stack.request_s + latency_at(percentile, self.latency, waiting)


@dataclass(frozen=True, slots=True)
class Operating:
    """One way to run a `MixedReplica`: the mean batch, what a request sees, and the rate.

    tpot_s: at the percentile asked for. ttft_s: at it, of prompts computed here; 0 without any.
    prompt_share: of the time of steps, what prompts take.
    """

    batch: float
    tpot_s: float
    tpot_mean_s: float
    ttft_s: float
    rate: float
    prompt_share: float = 0.0


class MixedReplica:
    """A replica that decodes `workload`, and computes the prompts of `prompts`, classes of the
    same workload whose shares say how many of its requests they are."""

    def __init__(
        self,
        cost: CostModel,
        workload: Workload,
        prompts: Sequence[RequestClass],
        chunk_tokens: int,
        percentile: float,
        z: float,
    ) -> None:
        """z: the standard score of `percentile`."""
        self.cost = cost
        self.chunk_tokens = chunk_tokens
        self._workload = workload
        self._prompts = tuple(prompts)
        self._share = sum(c.share for c in prompts)
        self._percentile = percentile
        self._z = z
        self.room = sequences_that_fit(
            cost.model, cost.layout, cost.precision, cost.device, workload.held
        )
        self.curve = tuple(self.operate(batch) for batch in self._batches())

    @property
    def devices(self) -> int:
        return self.cost.layout.world_size

    def best_within(self, ttft_s: float, tpot_s: float) -> Operating | None:
        """The operating point of the highest rate at which both are met, between the points of
        the curve by interpolation; None where none does."""
        best: Operating | None = None
        for here, beyond in zip(self.curve, [*self.curve[1:], None], strict=True):
            if here.tpot_s > tpot_s or here.ttft_s > ttft_s:
                continue
            point = here if beyond is None else _towards(here, beyond, ttft_s, tpot_s)
            if best is None or point.rate > best.rate:
                best = point
        return best

    def sharpened(self, point: Operating, ttft_s: float, tpot_s: float) -> Operating:
        """A point that `best_within` interpolated, computed, and then taken as far as both targets
        allow within its part of the curve."""
        most = next((p.batch for p in self.curve if p.batch > point.batch), point.batch)
        low = max((p for p in self.curve if p.batch <= point.batch), key=lambda p: p.batch)
        best, high = low, most
        for _ in range(8):
            middle = self.operate((low.batch + high) / 2)
            if middle.tpot_s <= tpot_s and middle.ttft_s <= ttft_s:
                low = middle
                best = max(best, middle, key=lambda p: p.rate)
            else:
                high = middle.batch
        return best

    def rate_beyond(self, point: Operating) -> float:
        """The rate of the next point of the curve: more than `sharpened` makes of this one."""
        return next((p.rate for p in self.curve if p.batch > point.batch), point.rate)

    def at_rate(self, rate: float, most: Operating) -> Operating:
        """The operating point of the smallest batch that serves `rate`, which `most` does."""
        low, best = 0.0, most
        for point in self.curve:
            if point.batch >= most.batch or point.rate >= rate:
                best = min(best, point, key=lambda p: p.batch)
                break
            low = point.batch
        for _ in range(8):
            middle = self.operate((low + best.batch) / 2)
            if middle.rate >= rate:
                best = middle
            else:
                low = middle.batch
        return best

    def operate(self, batch: float) -> Operating:
        """What `batch` sequences in the mean make of it."""
        workload, osl = self._workload, self._workload.osl
        step = token_period(self.cost, batch, workload.context)
        high = token_period(self.cost, batch + self._z * math.sqrt(batch), workload.context)
        added = self._added(batch) if self._prompts else []
        mean_added = sum(t * w for t, w in added) / self.cost.layout.dp
        per_request = mean_added * self._share
        tpot = step + batch * per_request / osl
        # Spread of the batch, and of how many prompts come during one answer.
        service = Service.of(added) if added else Service(0.0, 0.0)
        prompts_sd = math.sqrt(batch * self._share * (1 + service.cv**2)) * mean_added / osl
        spread = math.hypot(high - step, self._z * prompts_sd)
        rate = batch / (osl * tpot)
        ttft = self._ttft(rate, step, added)
        return Operating(batch, tpot + spread, tpot, ttft, rate, 1 - step / tpot)

    def _batches(self) -> list[float]:
        """Mean batches to try: one sequence a group, and up to what there is room for."""
        dp = self.cost.layout.dp
        most = _mean_that_fits(self.room, dp)
        sizes, batch = [], float(dp)
        while batch < most:
            sizes.append(batch)
            batch *= 2.0
        return [*sizes, most] if most >= dp else []

    def _added(self, batch: float) -> list[tuple[float, float]]:
        """What a prompt of each class in each group adds to the steps that carry them."""
        prompts = _Prompts(
            self.cost, self._prompts, self.chunk_tokens, alone=True,
            beside=Row(1, self._workload.context, batch),
        )  # fmt: skip
        return [(prompts.seconds(c), c.share / self._share) for c in self._prompts]

    def _ttft(self, rate: float, step: float, added: Sequence[tuple[float, float]]) -> float:
        if not added:
            return 0.0
        services, latencies = [], []
        for c, (seconds, share) in zip(self._prompts, added, strict=True):
            steps = c.fresh / self.chunk_tokens
            services.append((seconds + steps * step, share))
            latencies.append((seconds + (math.ceil(steps) + 0.5) * step, share))
        groups, cv = self.cost.layout.dp, self._workload.arrival_cv
        waiting = wait(groups, rate * self._share, Service.of(services), cv)
        if waiting is None:
            return math.inf
        return self.cost.stack.request_s + latency_at(self._percentile, latencies, waiting)


class _Prompts:
    """Seconds of a prompt by its length, through three lengths: time is about quadratic in it."""

    def __init__(
        self,
        cost: CostModel,
        classes: Sequence[RequestClass],
        chunk_tokens: int,
        *,
        alone: bool,
        beside: Row | None = None,
    ) -> None:
        """alone: from start to end, else of a busy group's time, which batches short prompts.
        Every group has a prompt alike. beside: decode rows of the same steps, whose own time is
        not the prompt's."""
        self._cost, self._chunk, self._alone, self._beside = cost, chunk_tokens, alone, beside
        self._base = 0.0 if beside is None else cost.step([beside]).seconds
        fresh = [c.fresh for c in classes]
        cached = sum(c.cached * c.share for c in classes) / sum(c.share for c in classes)
        low, high = min(fresh), max(fresh)
        xs = [low] if high - low < 1 else [low, (low + high) / 2, high]
        self._points = [(x, self._measure(x, cached)) for x in xs]

    def seconds(self, c: RequestClass) -> float:
        """By Lagrange through the points."""
        total = 0.0
        for i, (x, y) in enumerate(self._points):
            weight = 1.0
            for j, (other, _) in enumerate(self._points):
                if i != j:
                    weight *= (c.fresh - other) / (x - other)
            total += y * weight
        return max(total, 1e-9)

    def _measure(self, fresh: float, cached: float) -> float:
        groups = self._cost.layout.dp
        together = 1 if self._alone or self._beside else max(1, int(self._chunk // fresh))
        rows = [_shifted(row, cached, groups * together) for row in chunks(fresh, self._chunk)]
        if self._beside is not None:
            return _sum_over(rows, self._added)
        busy = _sum_over(rows, lambda row: self._cost.step([row]).interval_s)
        if self._alone:
            last = self._cost.step(rows[-1:])
            return busy + last.seconds - last.interval_s
        return busy / together

    def _added(self, row: Row) -> float:
        assert self._beside is not None
        return self._cost.step([self._beside, row]).seconds - self._base


def _sum_over(rows: Sequence[Row], seconds: Callable[[Row], float]) -> float:
    """Over the chunks of a prompt. Those of equal size differ by what is before them alone, about
    linearly, so that three of many tell the others."""
    if len(rows) <= 4:
        return sum(seconds(row) for row in rows)
    whole, rest = rows[:-1], rows[-1]
    ends = seconds(whole[0]) + seconds(whole[-1])
    return len(whole) * (ends + 4 * seconds(whole[len(whole) // 2])) / 6 + seconds(rest)


def token_period(cost: CostModel, batch: float, context: float) -> float:
    """Seconds between two tokens of a sequence when `batch` sequences decode: with pipeline
    stages as many micro-batches follow each other."""
    stages = min(cost.layout.pp, max(1, int(batch)))
    step = cost.step([Row(1, context, batch / stages)])
    return max(step.seconds, stages * step.interval_s)


def _towards(here: Operating, beyond: Operating, ttft_s: float, tpot_s: float) -> Operating:
    """As far from a point that meets both targets towards the next as they are met, taking all
    quantities as linear in the batch."""
    share = 1.0
    for now, then, target in (
        (here.tpot_s, beyond.tpot_s, tpot_s),
        (here.ttft_s, beyond.ttft_s, ttft_s),
    ):
        if then > target:
            share = min(share, 0.0 if math.isinf(then) else (target - now) / (then - now))

    def between(a: float, b: float) -> float:
        return a if share == 0.0 else a + share * (b - a)

    return Operating(
        between(here.batch, beyond.batch),
        between(here.tpot_s, beyond.tpot_s),
        between(here.tpot_mean_s, beyond.tpot_mean_s),
        between(here.ttft_s, beyond.ttft_s),
        between(here.rate, beyond.rate),
        between(here.prompt_share, beyond.prompt_share),
    )


def _shifted(row: Row, cached: float, count: float) -> Row:
    return Row(row.new, row.past + cached, count, row.samples)


def _mean_that_fits(room: float, groups: int) -> float:
    """The mean of a Poisson batch that stays within `room` 99 times of 100, or one sequence a
    group where there is room for that."""
    if room <= 0:
        return 0.0
    root = (-_ROOM_Z + math.sqrt(_ROOM_Z**2 + 4 * room)) / 2
    return max(root * root, min(room, float(groups)))


def _highest(meets: Callable[[float], bool], top: float) -> float:
    low, high = 0.0, top
    for _ in range(14):
        middle = (low + high) / 2
        if meets(middle):
            low = middle
        else:
            high = middle
    return low
