"""Times of pieces of work on a machine that is busy with other things too.

Pieces take turns, round after round, so that a slow spell meets all of them alike; what others
take from the machine only ever makes a time longer, so low times are the true ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eastwest.clock import Clock, seconds

Work = Callable[[], object]
# Told which share of the time is over, from 0 to 1.
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long all pieces may take together, warm-up included, and how often each is timed."""

    budget_s: float
    rounds_min: int = 3
    rounds_max: int = 15


def interleaved(
    works: Sequence[Work], clock: Clock, effort: Effort, progress: Progress = lambda _: None
) -> list[list[float]]:
    """Seconds of each piece, of each round; none for pieces that `effort` does not allow.

    Works come in order of growing cost: where one ends half of the budget in the warm-up, those
    after it are not begun. Of the others, the longest give way until all fit.
    """
    begun_ns = clock.now_ns()

    def spent_s() -> float:
        return seconds(clock.now_ns() - begun_ns)

    warm_up_s: list[float] = []
    for work in works:
        warm_up_s.append(timed(work, clock))
        progress(min(1.0, spent_s() / effort.budget_s))
        if spent_s() > effort.budget_s / 2:
            break
    kept = affordable(warm_up_s, effort.budget_s - spent_s(), effort.rounds_min)
    times: list[list[float]] = [[] for _ in works]
    for round_ in range(effort.rounds_max if kept else 0):
        if round_ >= effort.rounds_min and spent_s() >= effort.budget_s:
            break
        for index in kept:
            times[index].append(timed(works[index], clock))
            shares = spent_s() / effort.budget_s, round_ / effort.rounds_max
            progress(min(1.0, max(shares)))
    return times


def affordable(warm_up_s: Sequence[float], budget_s: float, rounds: int) -> list[int]:
    """Indices of the pieces that can be run so many times within the budget, in order; the
    longest ones are left out first."""
    kept = sorted(range(len(warm_up_s)), key=warm_up_s.__getitem__)
    while kept and rounds * sum(warm_up_s[index] for index in kept) > budget_s:
        kept.pop()
    return sorted(kept)


def typical_s(times: Sequence[float]) -> float:
    """The lower quartile: what a piece takes when little disturbs it, lucky runs aside."""
    return sorted(times)[len(times) // 4]


def timed(work: Work, clock: Clock) -> float:
    """Seconds of one run."""
    begun_ns = clock.now_ns()
    work()
    return seconds(clock.now_ns() - begun_ns)
