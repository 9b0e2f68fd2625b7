"""Keeps the points of a run in a file, so that one that was broken off goes on where it stood.

The first line says what is measured; a file of another measurement is refused. Each further line is
a point. A last line that was cut off is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.split.points import Point
from eastwest.errors import ConfigError

VERSION = 2
_POINT = TypeAdapter(Point)


class Journal:
    """path: None keeps points in memory only. measured: what says that two runs are of the same."""

    def __init__(self, path: Path | None, measured: Mapping[str, Any]) -> None:
        self._path = path
        self._points: dict[tuple[str, float, int], Point] = {}
        header = json.dumps({"version": VERSION, **measured}, sort_keys=True)
        if path is None:
            return
        try:
            if path.exists():
                self._read(path, header)
            else:
                path.write_text(header + "\n", encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"journal {path} cannot be used: {error}") from error

    def _read(self, path: Path, header: str) -> None:
        first, *lines = path.read_text(encoding="utf-8").split("\n")
        if first != header:
            raise ConfigError(
                f"journal {path} is of another measurement; allowed: one that was begun with the "
                f"same options, or a new file"
            )
        cut = lines.pop()
        for number, line in enumerate(lines, 2):
            try:
                self._keep(_POINT.validate_json(line))
            except ValidationError as error:
                raise ConfigError(
                    f"journal {path} line {number} is no point: {error.errors()[0]['msg']}"
                ) from error
        if cut:
            path.write_text("\n".join([first, *lines, ""]), encoding="utf-8")

    def find(self, split: str, rate: float, seed: int) -> Point | None:
        """A point that was measured before."""
        return self._points.get((split, rate, seed))

    def add(self, point: Point) -> None:
        """Keep a new point."""
        self._keep(point)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")

    @property
    def points(self) -> list[Point]:
        """All, in the order in which they were measured."""
        return list(self._points.values())

    def _keep(self, point: Point) -> None:
        self._points[point.split, point.rate, point.seed] = point
