"""A plan: the best split for a question, what else there is, how sure the choice is, and why.

`plan` is the planner's whole answer; everything that prints, draws or writes it reads `Plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from planner.advice import advise
from planner.hardware import Device
from planner.layouts import candidates
from planner.memory import RESERVE, weights_per_rank
from planner.model_shape import ModelShape
from planner.precision import Precision
from planner.quantity import seconds_text
from planner.search import Search
from planner.spares import available, most_used
from planner.split import Mode, Split, Targets
from planner.stacks import Stack
from planner.workload import Workload

_FRONTIER_POINTS = 14
_DEVICES_MAX = 4096
# Splits that serve as much within so small a difference are level: predictions are no better.
LEVEL = 0.03


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be planned. price_per_hour: of one device, in dollars; 0 where not known.
    availability: hosts are held back so that what is used is up with this probability. skew: load
    of the busiest expert-parallel rank over the mean, beyond what chance brings.
    source: how the model was named: in the catalogue, on the hub, or as a path."""

    model: ModelShape
    device: Device
    precision: Precision
    stack: Stack
    devices: int
    workload: Workload
    targets: Targets
    price_per_hour: float = 0.0
    availability: float | None = None
    skew: float = 1.0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What a change of the question does. best: the new best split, None where no split meets the
    targets any more. kept: the rate of the plan's own split under the change."""

    what: str
    best: Split | None
    kept: float


@dataclass(frozen=True, slots=True)
class Needs:
    """Bandwidths in bytes per second. link_used: of one device of the busier side, with what it
    has. store_worth: above which loading KV from a store beats computing it, for one prefill (or
    aggregated) replica."""

    link_kind: str
    link_used: float
    link_has: float
    kv_bytes_per_token: float
    store_worth: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. spares: devices that stand by; up: probability that the used ones' hosts are."""

    question: Question
    best: Split
    by_mode: Mapping[Mode, Split | None]
    frontiers: Mapping[Mode, list[Split]]
    changes: tuple[Change, ...]
    needs: Needs
    spares: int
    up: float
    advice: str

    def dollars_per_million_tokens(self, split: Split) -> float:
        """Of answer tokens, for the devices that are used."""
        dollars_per_s = split.devices * self.question.price_per_hour / 3600
        return dollars_per_s / split.tokens_per_s * 1e6


Progress = Callable[[str, float], None]


def plan(question: Question, progress: Progress | None = None) -> Plan:
    """Plan for a question.

    progress: told what is being done, and which share of the work is done. Raises `ConfigError`
    where the model does not fit (by how much, and what would), and where no split meets the
    targets (what is within reach).
    """
    tell = progress or (lambda what, share: None)
    used = _devices_in_use(question)
    search = _search(replace(question, devices=used))
    tell("layouts", 0.0)
    if not search.layouts:
        raise ConfigError(_does_not_fit(question, used))
    by_mode: dict[Mode, Split | None] = {}
    for i, mode in enumerate(Mode):
        tell(mode.value, 0.1 * i)
        by_mode[mode] = search.best(mode)
    best = _choose(by_mode)
    if best is None:
        raise ConfigError(_out_of_reach(search))
    frontiers = {}
    tpots = _tpots(search)
    for i, mode in enumerate(Mode):
        tell(f"frontier, {mode.value}", 0.3 + 0.15 * i)
        frontiers[mode] = search.frontier(mode, tpots)
    # Layouts that are best somewhere are those that may be best under a change.
    splits = [s for f in frontiers.values() for s in f] + [s for s in by_mode.values() if s]
    among = {pool.layout for split in splits for pool in split.pools}
    changes = []
    for i, (what, changed) in enumerate(_changed(replace(question, devices=used))):
        tell(f"what if {what}", 0.75 + 0.05 * i)
        changes.append(_change(what, changed, best, among))
    hosts = math.ceil(question.devices / question.device.devices_per_host)
    needed = math.ceil(best.devices / question.device.devices_per_host)
    return Plan(
        question,
        best,
        by_mode,
        frontiers,
        tuple(changes),
        _needs(search, best),
        question.devices - best.devices,
        available(hosts, needed),
        advise(question.workload, question.targets, best, by_mode, LEVEL),
    )


def _devices_in_use(question: Question) -> int:
    if not 1 <= question.devices <= _DEVICES_MAX:
        raise ConfigError(f"{question.devices} devices; allowed: 1 to {_DEVICES_MAX}")
    if question.availability is None:
        return question.devices
    per_host = question.device.devices_per_host
    hosts = question.devices // per_host
    return most_used(max(hosts, 1), question.availability) * min(per_host, question.devices)


def _search(q: Question, among: Collection[ParallelLayout] | None = None) -> Search:
    return Search(
        q.model, q.device, q.precision, q.stack, q.devices, q.workload, q.targets, q.skew, among
    )


def _choose(by_mode: Mapping[Mode, Split | None]) -> Split | None:
    """The highest rate; among those that are level, the simplest way of serving."""
    found = [split for split in by_mode.values() if split is not None]
    if not found:
        return None
    most = max(split.rate for split in found)
    simplest = list(Mode)
    level = [split for split in found if split.rate >= most * (1 - LEVEL)]
    return min(level, key=lambda split: simplest.index(split.mode))


def _tpots(search: Search) -> list[float]:
    """Times per token from the fastest that is possible to eight times the target."""
    low = search.fastest()[1] * 1.05
    high = max(search.targets.tpot_s * 8, low * 4)
    ratio = (high / low) ** (1 / (_FRONTIER_POINTS - 1))
    return [low * ratio**i for i in range(_FRONTIER_POINTS)]


def _changed(q: Question) -> list[tuple[str, Question]]:
    w, t = q.workload, q.targets
    bursty = replace(w, arrival_cv=2 * w.arrival_cv)
    return [
        ("prompts are half as long again", replace(q, workload=w.scaled(isl=1.5))),
        ("answers are half as long again", replace(q, workload=w.scaled(osl=1.5))),
        ("TTFT must be halved", replace(q, targets=replace(t, ttft_s=t.ttft_s / 2))),
        ("TPOT must be two thirds", replace(q, targets=replace(t, tpot_s=t.tpot_s / 1.5))),
        ("arrivals are twice as bursty", replace(q, workload=bursty)),
    ]


def _change(what: str, q: Question, chosen: Split, among: Collection[ParallelLayout]) -> Change:
    search = _search(q, among)
    if not search.layouts:
        return Change(what, None, 0.0)
    return Change(what, _choose({mode: search.best(mode) for mode in Mode}), search.rate_of(chosen))


def _needs(search: Search, best: Split) -> Needs:
    links, first = search.links, best.pools[0]
    smaller = min(pool.devices for pool in best.pools)
    fresh = search.workload.fresh
    kv = links.request_bytes / fresh
    tokens_per_s = best.rate * fresh / first.replicas / max(first.load, 1e-9)
    return Needs(
        links.kind, best.link_bytes_per_s / smaller, links.bytes_per_s, kv, tokens_per_s * kv
    )


def _does_not_fit(q: Question, used: int) -> str:
    need = q.workload.longest
    smallest = next(
        (
            layout
            for devices in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
            for layout in candidates(q.model, q.precision, q.device, devices, need)
        ),
        None,
    )
    whole = weights_per_rank(q.model, ParallelLayout(), q.precision)
    has = used * q.device.memory.bytes * (1 - RESERVE)
    fits = (
        "it fits no number of them"
        if smallest is None
        else f"the smallest that fits: {smallest.world_size} ({smallest})"
    )
    short = whole - has
    by_how_much = (
        f"{short / 1e9:,.0f} GB short"
        if short > 0
        else f"no layout leaves room for a sequence of {need:,.0f} tokens"
    )
    return (
        f"{q.model.name} weighs {whole / 1e9:,.0f} GB in {q.precision.experts} and {used} x "
        f"{q.device.name} hold {has / 1e9:,.0f} GB beside a reserve of {RESERVE:.0%}: "
        f"{by_how_much}; {fits}; fewer bits a weight (--weights) need less"
    )


def _out_of_reach(search: Search) -> str:
    t = search.targets
    ttft, tpot = search.fastest()
    wrong = [
        f"{name} {seconds_text(asked)} is out of reach (the best here is {seconds_text(best)})"
        for name, asked, best in (("TTFT", t.ttft_s, ttft), ("TPOT", t.tpot_s, tpot))
        if asked < best
    ]
    if not wrong:
        wrong = [
            f"TTFT {seconds_text(t.ttft_s)} and TPOT {seconds_text(t.tpot_s)} are not met together "
            f"by {search.devices} devices (alone: {seconds_text(ttft)} and {seconds_text(tpot)})"
        ]
    return (
        f"{search.model.name} on {search.devices} x {search.device.name}, p{t.percentile * 100:g}: "
        f"{' and '.join(wrong)}; allowed: looser targets, shorter prompts or other hardware"
    )
