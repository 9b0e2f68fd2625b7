"""Sweeps splits: for each, the highest rate that keeps the targets, by one search for each seed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from bench.split.journal import Journal
from bench.split.points import Point
from bench.split.search import RateSearch
from bench.split.simulated import SimulatedWorkers
from bench.split.splits import Split

Run = Callable[[Split, float, int], Awaitable[Point]]
Told = Callable[[Point], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """share: of requests that must keep both targets. seeds: how many searches, each with other
    requests. start: the rate to begin with. within: factor to which a rate is found."""

    share: float
    seeds: int
    start: float
    within: float

    def kept(self, point: Point) -> bool:
        """Whether the targets were."""
        return point.attained >= self.share and not point.stopped


@dataclass(frozen=True, slots=True)
class Found:
    """goodput: requests/s of each seed's search, 0 where none was kept. points: of all searches,
    by seed and rate."""

    split: Split
    goodput: tuple[float, ...]
    points: tuple[Point, ...]

    @property
    def mean(self) -> float:
        return sum(self.goodput) / len(self.goodput)

    @property
    def at(self) -> Point | None:
        """The first seed's run at its goodput; None where there is none."""
        first = self.points[0].seed
        return next((p for p in self.points if (p.seed, p.rate) == (first, self.goodput[0])), None)

    @property
    def beyond(self) -> Point | None:
        """The first seed's run at the lowest rate that did not hold."""
        first, low = self.points[0].seed, self.goodput[0]
        above = [p for p in self.points if p.seed == first and p.rate > low]
        return min(above, key=lambda p: p.rate, default=None)


async def sweep(
    splits: Iterable[Split], run: Run, rules: Rules, journal: Journal, told: Told
) -> list[Found]:
    """One split after the other; all searches of one before the next, since another deployment
    takes time. Begins each search where the last one ended, and does not look for rates below half
    of the best so far. told: each point, as it is known."""
    found: list[Found] = []
    best = 0.0
    for split in splits:
        start, goodput, points = rules.start, [], []
        for seed in range(1, rules.seeds + 1):
            search = RateSearch(start, rules.within, hopeless_below=best / 2)
            while (rate := search.next) is not None:
                point = journal.find(split.name, rate, seed)
                if point is None:
                    point = await run(split, rate, seed)
                    journal.add(point)
                points.append(point)
                told(point)
                search.tell(rate, kept=rules.kept(point))
            goodput.append(search.low)
            start = search.low or start
        found.append(_found(split, goodput, points))
        best = max(best, found[-1].mean)
    return found


def sweep_simulated(
    splits: Sequence[Split],
    workers: SimulatedWorkers,
    rules: Rules,
    journal: Journal,
    told: Told,
    processes: int | None = None,
) -> list[Found]:
    """Searches of all splits and seeds side by side, one process each."""
    searches = {
        (split, seed): RateSearch(rules.start, rules.within)
        for split in splits
        for seed in range(1, rules.seeds + 1)
    }
    points: dict[Split, list[Point]] = {split: [] for split in splits}
    with ProcessPoolExecutor(processes) as pool:
        open_ = dict(searches)
        while open_:
            asked = {key: search.next for key, search in open_.items()}
            open_ = {key: search for key, search in open_.items() if asked[key] is not None}
            runs = {}
            for split, seed in open_:
                rate = asked[split, seed]
                assert rate is not None
                if journal.find(split.name, rate, seed) is None:
                    runs[split, seed] = pool.submit(workers.run, split, rate, seed)
            for (split, seed), search in open_.items():
                rate = asked[split, seed]
                assert rate is not None
                if (run := runs.get((split, seed))) is not None:
                    journal.add(run.result())
                point = journal.find(split.name, rate, seed)
                assert point is not None
                points[split].append(point)
                told(point)
                search.tell(rate, kept=rules.kept(point))
    return [
        _found(split, [searches[split, s].low for s in range(1, rules.seeds + 1)], points[split])
        for split in splits
    ]


def _found(split: Split, goodput: Sequence[float], points: Sequence[Point]) -> Found:
    order = sorted(points, key=lambda p: (p.seed, p.rate))
    return Found(split, tuple(goodput), tuple(order))
