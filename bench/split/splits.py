"""Splits of a number of workers into roles, by the names that people give them: 4A, 1P3D, 2P2D+.

A plus says that any worker may do both (`router.conditional`): decode workers prefill where that
is cheaper for everyone, and prompts get of a step what the batch beside them can spare.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from eastwest.errors import ConfigError
from eastwest.types import Role

_NAME = re.compile(r"(?:(\d{1,4})A|(\d{1,4})P(\d{1,4})D)(\+?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Split:
    """So many workers of each role."""

    prefill: int = 0
    decode: int = 0
    aggregated: int = 0
    conditional: bool = False

    @property
    def name(self) -> str:
        """As `split_of` reads it."""
        plain = f"{self.aggregated}A" if self.aggregated else f"{self.prefill}P{self.decode}D"
        return plain + "+" * self.conditional

    @property
    def plain_aggregated(self) -> bool:
        """What splits are held against: every worker serves both phases by fixed rules."""
        return bool(self.aggregated) and not self.conditional

    @property
    def workers(self) -> int:
        return self.prefill + self.decode + self.aggregated

    @property
    def replicas(self) -> tuple[tuple[Role, int], ...]:
        """Of each role that it has."""
        counts = {
            Role.PREFILL: self.prefill,
            Role.DECODE: self.decode,
            Role.AGGREGATED: self.aggregated,
        }
        return tuple((role, count) for role, count in counts.items() if count)


def split_of(name: str) -> Split:
    """Raises `ConfigError` where that is no name of a split."""
    match = _NAME.fullmatch(name.strip().upper())
    counts = [int(n) for n in match.groups()[:3] if n] if match else []
    if match is None or min(counts) < 1:
        raise ConfigError(f"{name!r} is no split; allowed: such as 4A, 1P3D, 4A+ or 1P3D+")
    aggregated, prefill, decode, plus = match.groups()
    return Split(int(prefill or 0), int(decode or 0), int(aggregated or 0), bool(plus))


def all_splits(workers: int) -> list[Split]:
    """Every way to use so many workers: aggregated ones, and each xPyD, both kinds also with a
    plus. Raises `ConfigError` for fewer than two."""
    if workers < 2:
        raise ConfigError(f"{workers} workers cannot be split; allowed: at least 2")
    plain = [Split(aggregated=workers)]
    plain += [Split(prefill=p, decode=workers - p) for p in range(1, workers)]
    return [Split(s.prefill, s.decode, s.aggregated, plus) for s in plain for plus in (False, True)]
