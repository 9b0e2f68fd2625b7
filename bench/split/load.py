"""The requests of a run: how long they are and when they come, the same for every split."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from eastwest.errors import ConfigError
from planner.traces import TraceRow


@dataclass(frozen=True, slots=True)
class Load:
    """isl, osl: mean tokens of a prompt and an answer. spread: standard deviation of both over
    their mean (log-normal). burstiness: the same of the time between requests; 1 is Poisson. trace:
    rows that are used instead, whose times are stretched to the rate and whose prompts keep what
    they share. context_tokens: prompts are cut so that their answers fit."""

    isl: float
    osl: float
    spread: float = 0.0
    burstiness: float = 1.0
    trace: tuple[TraceRow, ...] = ()
    context_tokens: int = 1 << 20

    def rows(self, rate: float, count: int, seed: int) -> list[TraceRow]:
        """`count` requests (fewer where the trace has no more), `rate` a second. Of a trace each
        seed takes another stretch."""
        rng = random.Random(seed)
        if self.trace:
            return self._stretch(rate, count, rng)
        at_s, rows = 0.0, []
        shape = self.burstiness**-2
        for _ in range(count):
            at_s += rng.gammavariate(shape, 1 / (rate * shape))
            rows.append(
                self._fitting(self._length(rng, self.isl), self._length(rng, self.osl), at_s)
            )
        return rows

    def _stretch(self, rate: float, count: int, rng: random.Random) -> list[TraceRow]:
        first = rng.randrange(max(1, len(self.trace) - count + 1))
        part = self.trace[first : first + count]
        times = [row.at_s if row.at_s is not None else float(i) for i, row in enumerate(part)]
        span_s = (times[-1] - times[0]) or 1.0
        factor = (len(part) - 1 or 1) / rate / span_s
        return [
            self._fitting(row.isl, row.osl, (at - times[0]) * factor, row.blocks)
            for row, at in zip(part, times, strict=True)
        ]

    def _fitting(self, isl: int, osl: int, at_s: float, blocks: tuple[int, ...] = ()) -> TraceRow:
        osl = min(osl, self.context_tokens - 1)
        isl = min(isl, self.context_tokens - osl)
        return TraceRow(isl, osl, at_s, blocks)

    def _length(self, rng: random.Random, mean: float) -> int:
        sigma = math.sqrt(math.log1p(self.spread**2))
        return max(1, round(mean * math.exp(rng.gauss(-(sigma**2) / 2, sigma)) if sigma else mean))


def check_load(load: Load) -> Load:
    """The same. Raises `ConfigError` for what no requests can be made of."""
    for name, value, least in (("isl", load.isl, 1.0), ("osl", load.osl, 1.0)):
        if not least <= value < load.context_tokens:
            raise ConfigError(
                f"{name} is {value:g}; allowed: {least:g} to below {load.context_tokens}, what the "
                f"model has room for"
            )
    for name, value, low, high in (
        ("spread", load.spread, 0.0, 10.0),
        ("burstiness", load.burstiness, 0.1, 10.0),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value:g}; allowed: {low:g} to {high:g}")
    return load
