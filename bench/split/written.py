"""A sweep as it is written and read again: JSON of version 1, see `docs/split.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bench.split.points import Point
from eastwest.errors import ConfigError

VERSION = 1
_POINT = TypeAdapter(Point)


class Verdict(BaseModel):
    """See `bench.split.verdict`; the best split by its name."""

    headline: str
    best: str | None
    as_good: tuple[str, ...] = ()
    over_aggregated: float | None = None


class SweptSplit(BaseModel):
    """One split of a sweep that was written; see `docs/split.md`."""

    split: str
    goodput: float
    goodput_by_seed: tuple[float, ...] = Field(min_length=1)
    planned: float | None = None
    short_of: str = ""
    points: tuple[dict[str, Any], ...]

    @property
    def at(self) -> Point | None:
        """The first seed's run at its goodput; None where there is none."""
        best = self.goodput_by_seed[0]
        return next((point for point in self.runs().values() if point.rate == best), None)

    def runs(self) -> dict[tuple[float, int], Point]:
        """By rate and seed."""
        points = (_POINT.validate_python(_without_interval(point)) for point in self.points)
        return {(point.rate, point.seed): point for point in points}


class Sweep(BaseModel):
    """A sweep that was written."""

    format: Literal["eastwest split"]
    version: Literal[1]
    measured: dict[str, Any]
    devices: int | None = None
    percentiles: tuple[float, ...]
    ttft_parts: tuple[str, ...]
    verdict: Verdict
    splits: tuple[SweptSplit, ...]

    @property
    def title(self) -> str:
        """What was measured, in a line; says so where it was SIMULATED."""
        if (simulated := self.measured.get("simulated")) is not None:
            model, tp = self.measured.get("model"), self.measured.get("tp")
            return f"SIMULATED: {model} on {simulated}, tp={tp}"
        live = self.measured.get("live")
        model = live.get("model") if isinstance(live, dict) else None
        return f"live: {model.get('source') if isinstance(model, dict) else 'a deployment'}"

    @property
    def within(self) -> float:
        """The factor to which rates were found."""
        within = self.measured.get("within")
        return float(within) if isinstance(within, int | float) and within >= 1 else 1.0


def read_sweep(path: Path) -> Sweep:
    """Raises `ConfigError` where the file is none of ours, or of another version."""
    try:
        sweep = Sweep.model_validate_json(path.read_bytes())
        for split in sweep.splits:
            split.runs()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise ConfigError(
            f"{path} is no sweep: {where}: {first['msg']}; allowed: what 'eastwest bench split "
            f"--json' writes, version {VERSION}"
        ) from error
    return sweep


def _without_interval(point: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name != "attained_interval"}
