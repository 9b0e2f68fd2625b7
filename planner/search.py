"""The search over layouts and splits: for each way of serving, what serves the most requests within
both targets.

A replica of each layout is evaluated once; a split is then a few look-ups. Pools are matched by
rate: the lesser of what each can serve is what they serve together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import NormalDist

from eastwest.layout import ParallelLayout
from planner.cost import CostModel
from planner.hardware import Device
from planner.layouts import candidates
from planner.links import Links
from planner.model_shape import ModelShape
from planner.pairing import Matching
from planner.precision import Precision
from planner.replicas import MixedReplica, Operating, PromptReplica
from planner.split import Mode, Pool, Split, Targets
from planner.stacks import Stack
from planner.workload import RequestClass, Workload

PROMPT_CHUNK_TOKENS = 16384
MIXED_CHUNKS = (1024, 4096, 16384)
_LOCAL_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


class Search:
    """One model on `devices` devices of one kind, under one workload and its targets."""

    def __init__(
        self,
        model: ModelShape,
        device: Device,
        precision: Precision,
        stack: Stack,
        devices: int,
        workload: Workload,
        targets: Targets,
        skew: float = 1.0,
        among: Collection[ParallelLayout] | None = None,
    ) -> None:
        """skew: see `CostModel`. among: the only layouts to try; None for all that fit."""
        self.model = model
        self.device = device
        self.precision = precision
        self.stack = stack
        self.devices = devices
        self.workload = workload
        self.targets = targets
        self.skew = skew
        self._among = among
        self.links = Links(model, precision, device, devices, workload)
        self._found: dict[tuple[Mode, float], Split | None] = {}
        self._remote: dict[tuple[ParallelLayout, float], list[PromptReplica]] = {}
        self._local: dict[tuple[ParallelLayout, float], list[MixedReplica]] = {}

    @cached_property
    def layouts(self) -> tuple[ParallelLayout, ...]:
        """Those that fit the model and the memory."""
        need = self.workload.longest
        fitting = candidates(self.model, self.precision, self.device, self.devices, need)
        return tuple(x for x in fitting if self._among is None or x in self._among)

    def best(self, mode: Mode, tpot_s: float | None = None) -> Split | None:
        """The split of the highest rate; None where none meets the targets. tpot_s: instead of
        that of the targets."""
        tpot = self.targets.tpot_s if tpot_s is None else tpot_s
        if (mode, tpot) not in self._found:
            find = {
                Mode.AGGREGATED: self._aggregated,
                Mode.DISAGGREGATED: self._disaggregated,
                Mode.CONDITIONAL: self._conditional,
            }[mode]
            self._found[mode, tpot] = find(tpot)
        return self._found[mode, tpot]

    def frontier(self, mode: Mode, tpots_s: Sequence[float]) -> list[Split]:
        """The best split at each time per token, without those that another beats in both
        tokens/s/user and tokens/s/device; fastest for the user first."""
        found = [s for s in (self.best(mode, tpot) for tpot in tpots_s) if s is not None]
        kept: list[Split] = []
        for split in sorted(found, key=lambda s: -s.tokens_per_s_per_user):
            if not kept or split.tokens_per_s_per_device > kept[-1].tokens_per_s_per_device:
                kept.append(split)
        return kept

    def rate_of(self, split: Split) -> float:
        """What a split of another search (its layouts, replicas and chunks) serves within these
        targets; 0 where it does not meet them or does not fit."""
        for pool in split.pools:
            if pool.layout not in self.layouts:
                return 0.0
        last, t = split.pools[-1], self.targets
        if split.mode is Mode.AGGREGATED:
            replica = self.replica(last.layout, self.workload.classes, last.chunk_tokens)
            point = _exact(replica, t)
            return 0.0 if point is None else last.replicas * point.rate
        by_length = sorted(self.workload.classes, key=lambda c: c.fresh)
        local = [c for c in by_length if c.fresh <= split.local_tokens]
        remote = [c for c in by_length if c.fresh > split.local_tokens]
        if not remote:
            return 0.0
        first, moved = split.pools[0], sum(c.share for c in remote)
        prompts = PromptReplica(self._cost(first.layout), remote, first.chunk_tokens)
        decode = self.replica(last.layout, local, last.chunk_tokens)
        matching = Matching(self.workload, t, self.links, self.devices, moved)
        left = t.tpot_s - matching.late_s(prompts, decode)
        point = _exact(decode, replace(t, tpot_s=left))
        if point is None:
            return 0.0
        cv = self.workload.arrival_cv
        prompt_rate = prompts.rate_within(t.ttft_s, t.percentile, first.replicas, cv) / moved
        link_rate = matching.link_rate(min(first.devices, last.devices))
        return min(prompt_rate, last.replicas * point.rate, link_rate)

    def fastest(self) -> tuple[float, float]:
        """``(ttft_s, tpot_s)``: the best that any layout reaches at all, each by itself, for a
        deployment that is all but idle."""
        ttft = min(p.ttft(0.0, self.targets.percentile, 1, 1.0) for p in self._prompts)
        tpot = min(d.curve[0].tpot_s for d in self._decodes if d.curve)
        return ttft, tpot

    def _aggregated(self, tpot_s: float) -> Split | None:
        points = self._points(self._mixtures, tpot_s)
        points.sort(key=lambda rp: -(self.devices // rp[0].devices * rp[1].rate))
        best: tuple[float, MixedReplica, Operating] | None = None
        for replica, near in points:
            count = self.devices // replica.devices
            if best is not None and count * replica.rate_beyond(near) <= best[0]:
                continue  # not even what lies beyond would be better
            point = replica.sharpened(near, self.targets.ttft_s, tpot_s)
            if best is None or count * point.rate > best[0]:
                best = count * point.rate, replica, point
        if best is None:
            return None
        _, replica, point = best
        count = self.devices // replica.devices
        layout, chunk = replica.cost.layout, replica.chunk_tokens
        pool = Pool("aggregated", layout, count, chunk, point.batch, 1.0)
        return Split(
            Mode.AGGREGATED, (pool,), count * point.rate, point.ttft_s, point.tpot_s,
            point.tpot_mean_s, self.workload.osl, "engine", prompt_share=point.prompt_share,
        )  # fmt: skip

    def _disaggregated(self, tpot_s: float) -> Split | None:
        targets = replace(self.targets, tpot_s=tpot_s)
        matching = Matching(self.workload, targets, self.links, self.devices)
        pairing = matching.best(self._prompts, self._points(self._decodes, tpot_s))
        return None if pairing is None else matching.settle(Mode.DISAGGREGATED, pairing)

    def _conditional(self, tpot_s: float) -> Split | None:
        """The prompt layout of the best disaggregated pair, with a share of the shortest prompts
        kept where they decode: in its decode layout, or in that which is best aggregated."""
        pure, mixed = self.best(Mode.DISAGGREGATED, tpot_s), self.best(Mode.AGGREGATED, tpot_s)
        if pure is None:
            return None
        decode_layouts = {split.pools[-1].layout: None for split in (pure, mixed) if split}
        by_length = sorted(self.workload.classes, key=lambda c: c.fresh)
        targets = replace(self.targets, tpot_s=tpot_s)
        best: Split | None = None
        for share in _LOCAL_SHARES:
            local, remote = cut(by_length, share)
            if not local or not remote:
                continue
            moved = sum(c.share for c in remote)
            matching = Matching(self.workload, targets, self.links, self.devices, moved)
            prompts = self._prompts_from(pure.pools[0].layout, share, remote)
            decodes = [r for x in decode_layouts for r in self._decodes_with(x, share, local)]
            pairing = matching.best(prompts, self._points(decodes, tpot_s))
            if pairing is not None and (best is None or pairing.rate > best.rate):
                best = matching.settle(Mode.CONDITIONAL, pairing, local[-1].fresh)
        return best

    def _prompts_from(
        self, layout: ParallelLayout, share: float, remote: Sequence[RequestClass]
    ) -> list[PromptReplica]:
        """For prompts longer than those of `share` of the requests, evaluated once."""
        if (layout, share) not in self._remote:
            self._remote[layout, share] = [self.prompts(layout, remote)]
        return self._remote[layout, share]

    def _decodes_with(
        self, layout: ParallelLayout, share: float, local: Sequence[RequestClass]
    ) -> list[MixedReplica]:
        """With the other prompts, evaluated once."""
        if (layout, share) not in self._local:
            chunked = [self.replica(layout, local, chunk) for chunk in MIXED_CHUNKS]
            self._local[layout, share] = chunked
        return self._local[layout, share]

    def _points(
        self, replicas: Iterable[MixedReplica], tpot_s: float
    ) -> list[tuple[MixedReplica, Operating]]:
        points = ((r, r.best_within(self.targets.ttft_s, tpot_s)) for r in replicas)
        return [(replica, point) for replica, point in points if point is not None]

    @cached_property
    def _prompts(self) -> list[PromptReplica]:
        return [self.prompts(layout) for layout in self.layouts]

    @cached_property
    def _decodes(self) -> list[MixedReplica]:
        return [self.replica(layout) for layout in self.layouts]

    @cached_property
    def _mixtures(self) -> list[MixedReplica]:
        classes = self.workload.classes
        return [self.replica(layout, classes, c) for layout in self.layouts for c in MIXED_CHUNKS]

    def replica(
        self,
        layout: ParallelLayout,
        prompts: Sequence[RequestClass] = (),
        chunk_tokens: int = PROMPT_CHUNK_TOKENS,
    ) -> MixedReplica:
        """One that decodes, and computes `prompts` between; not kept."""
        percentile = self.targets.percentile
        z = max(NormalDist().inv_cdf(percentile), 0.0)
        cost = self._cost(layout)
        return MixedReplica(cost, self.workload, prompts, chunk_tokens, percentile, z)

    def prompts(
        self, layout: ParallelLayout, classes: Sequence[RequestClass] | None = None
    ) -> PromptReplica:
        """One that computes the prompts of `classes`, or of all; not kept."""
        among = self.workload.classes if classes is None else classes
        return PromptReplica(self._cost(layout), among, PROMPT_CHUNK_TOKENS)

    def _cost(self, layout: ParallelLayout) -> CostModel:
        return CostModel(self.model, layout, self.precision, self.device, self.stack, self.skew)


def _exact(replica: MixedReplica, targets: Targets) -> Operating | None:
    near = replica.best_within(targets.ttft_s, targets.tpot_s)
    if near is None:
        return None
    return replica.sharpened(near, targets.ttft_s, targets.tpot_s)


def cut(
    by_length: Sequence[RequestClass], share: float
) -> tuple[list[RequestClass], list[RequestClass]]:
    """The shortest classes that make up about `share` of the requests, and the others; classes
    that are equally long stay together."""
    total, at = 0.0, 0
    while at < len(by_length) and total + by_length[at].share <= share + 1e-9:
        total += by_length[at].share
        at += 1
    while 0 < at < len(by_length) and by_length[at].fresh <= by_length[at - 1].fresh:
        at += 1
    return list(by_length[:at]), list(by_length[at:])
