"""What a sweep comes to: the best split, how flat the optimum is, and what each split lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.split.points import PARTS, PERCENTILES, Point
from bench.split.splits import Split
from bench.split.sweep import Found

# Splits within so much of the best are as good: what searches and seeds leave open.
_AS_GOOD = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """best: None where no split keeps the targets at any rate. as_good: others within 5 % of it.
    over_aggregated: its goodput over that of the best plain aggregated split, None where none was
    tried or kept."""

    best: Found | None
    as_good: tuple[str, ...]
    over_aggregated: float | None

    @property
    def headline(self) -> str:
        """One sentence; says so first where aggregated serving wins."""
        if self.best is None:
            return "no split keeps the targets at any rate that was tried"
        best = self.best
        words = f"{best.split.name}: {best.mean:.3g} requests/s within the targets"
        if best.split.plain_aggregated:
            words = f"aggregated serving wins: {words}"
        elif self.over_aggregated is not None:
            words = f"best is {words}, {self.over_aggregated:.2f} times aggregated serving"
        else:
            words = f"best is {words}"
        return words + (f"; as good: {', '.join(self.as_good)}" if self.as_good else "")


def verdict(found: Sequence[Found]) -> Verdict:
    """Of a sweep."""
    kept = [f for f in found if f.mean > 0]
    if not kept:
        return Verdict(None, (), None)
    best = max(kept, key=lambda f: f.mean)
    as_good = tuple(
        f.split.name for f in kept if f is not best and f.mean >= (1 - _AS_GOOD) * best.mean
    )
    plain = [f.mean for f in kept if f.split.plain_aggregated]
    return Verdict(best, as_good, best.mean / max(plain) if plain else None)


def bottleneck(point: Point | None, split: Split) -> str:
    """What a split lacks at a rate at which it does not keep the targets, from what is missed and
    where the time went. "" where nothing is missed."""
    if point is None or not (point.missed_ttft or point.missed_tpot):
        return ""
    if point.missed_tpot > point.missed_ttft:
        gap_s = max(point.tpot_s[PERCENTILES.index(0.9)], 1e-9)
        # Exposed transfer comes once; it is the link where it is most of a late second token.
        if point.exposed_s > 10 * gap_s:
            return "link"
        return "decode beside prompts" if split.aggregated else "decode"
    parts = dict(zip(PARTS, point.parts_s, strict=True))
    largest = max(parts, key=parts.__getitem__)
    names = {"queue": "prefill", "prefill": "prefill", "reservation": "decode memory"}
    return names.get(largest, "router")
