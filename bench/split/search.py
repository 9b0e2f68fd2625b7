"""Finds the highest rate at which targets are kept, by trying rates: deciding only, no runs."""

from __future__ import annotations

import math


class RateSearch:
    """Doubles or halves from `start` until a rate that holds and one that does not are known, then
    closes in on the border. `within`: the two differ by less than that factor at the end. Ask
    `next`, run, `tell`, until `next` is None. hopeless_below: rates not worth knowing."""

    def __init__(
        self, start: float, within: float, hopeless_below: float = 0.0, most: float = 1e6
    ) -> None:
        assert start > 0, "a rate"
        assert within > 1, "a factor"
        self.low = 0.0
        self.high = math.inf
        self._start = start
        self._within = within
        self._least = max(hopeless_below, start / 2**10)
        self._most = most

    @property
    def next(self) -> float | None:
        """The rate to try next; None where nothing more is to be learned."""
        if not self.low:
            if self.high == math.inf:
                return self._start
            return self.high / 2 if self.high / 2 >= self._least else None
        if self.high == math.inf:
            return 2 * self.low if 2 * self.low <= self._most else None
        return math.sqrt(self.low * self.high) if self.high / self.low > self._within else None

    def tell(self, rate: float, *, kept: bool) -> None:
        """Whether the targets were kept at a rate."""
        if kept:
            self.low = max(self.low, rate)
        else:
            self.high = min(self.high, rate)
