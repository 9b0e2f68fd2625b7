"""Reads request traces: lengths, times, and how much of each prompt was seen before.

Known are Mooncake's JSON lines (timestamp in ms, input_length, output_length, hash_ids, one for
each 512 prompt tokens), Azure's CSV (TIMESTAMP, ContextTokens, GeneratedTokens), and any CSV or
JSON lines with a column each for prompt and answer tokens, which may be named. Rows that make no
sense are skipped and told by line.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from eastwest.errors import ConfigError
from planner.workload import TOKENS_MAX, Workload, from_requests

_HASHED_TOKENS = 512
_PROMPT = ("input_length", "ContextTokens", "isl", "prompt_tokens", "input_tokens")
_ANSWER = ("output_length", "GeneratedTokens", "osl", "completion_tokens", "output_tokens")
_TIME = ("timestamp", "TIMESTAMP", "time", "arrival_s")
# Told in full; the others are counted.
SKIPPED_SHOWN = 5


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. at_s: since some beginning; None where the trace has no times."""

    isl: int
    osl: int
    at_s: float | None
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """What a file held. skipped: ``line N: why`` of rows that were left out, in order."""

    path: str
    rows: tuple[TraceRow, ...]
    skipped: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Mean requests per second; 0 where there are no times."""
        times = [row.at_s for row in self.rows if row.at_s is not None]
        span = max(times) - min(times) if len(times) > 1 else 0.0
        return (len(times) - 1) / span if span else 0.0

    def workload(self, *, cached: bool = False) -> Workload:
        """Its distribution of lengths and its burstiness. cached: with the KV of every block that
        came before, as a cache without a limit would have it."""
        requests = [
            (float(row.isl), float(row.osl), float(known))
            for row, known in zip(
                self.rows, _known(self.rows) if cached else [0] * len(self.rows), strict=True
            )
        ]
        return from_requests(requests, _variation(self.rows), f"{len(requests):,} of {self.path}")


def read_trace(path: Path, prompt: str | None = None, answer: str | None = None) -> Trace:
    """Read a trace file. prompt, answer: names of the columns with token counts, where they are
    not among those that are known. Raises `ConfigError` where no row can be used."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {path} cannot be read: {error}") from error
    rows: list[TraceRow] = []
    skipped: list[str] = []
    for number, fields in _records(text):
        if isinstance(fields, str):
            skipped.append(f"line {number}: {fields}")
            continue
        try:
            rows.append(_row(fields, prompt, answer))
        except ValueError as error:
            skipped.append(f"line {number}: {error}")
    if not rows:
        shown = "; ".join(skipped[:SKIPPED_SHOWN]) or "it is empty"
        raise ConfigError(
            f"trace {path} has no usable row ({shown}); allowed: JSON lines or CSV with columns "
            f"such as {_PROMPT[0]} and {_ANSWER[0]}, or named ones"
        )
    return Trace(str(path), tuple(rows), tuple(skipped))


def _records(text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Each row with its line number, or why it is none."""
    lines = text.splitlines()
    if text.lstrip().startswith("{"):
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parsed(line)
        return
    reader = csv.DictReader(lines)
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield reader.reader.line_num, f"it is not CSV: {error}"
            continue
        if fields is None:
            return
        if None in fields or None in fields.values():
            yield reader.line_num, "its number of columns differs from the header's"
        else:
            yield reader.line_num, fields


def _parsed(line: str) -> Mapping[str, Any] | str:
    try:
        fields = json.loads(line)
    except ValueError:
        return "it is not JSON"
    return fields if isinstance(fields, dict) else "it is not a JSON object"


def _row(fields: Mapping[str, Any], prompt: str | None, answer: str | None) -> TraceRow:
    """Raises `ValueError` with what is wrong."""
    isl = _tokens(fields, (prompt,) if prompt else _PROMPT)
    osl = _tokens(fields, (answer,) if answer else _ANSWER)
    blocks = fields.get("hash_ids", ())
    if not isinstance(blocks, list | tuple) or not all(type(b) is int for b in blocks):
        raise ValueError("hash_ids is not a list of integers")
    return TraceRow(isl, osl, _time(fields), tuple(blocks))


def _tokens(fields: Mapping[str, Any], names: Iterable[str]) -> int:
    name = next((n for n in names if n in fields), None)
    if name is None:
        raise ValueError(f"it has no column {' or '.join(names)}")
    try:
        exact = float(fields[name])
        count = int(exact)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {fields[name]!r}, not a number of tokens") from None
    if count != exact or isinstance(fields[name], bool):
        raise ValueError(f"{name} is {fields[name]!r}, not a number of tokens")
    if not 1 <= count <= TOKENS_MAX:
        raise ValueError(f"{name} is {count}; allowed: 1 to {TOKENS_MAX}")
    return count


def _time(fields: Mapping[str, Any]) -> float | None:
    name = next((n for n in _TIME if n in fields), None)
    if name is None:
        return None
    value = fields[name]
    try:
        seconds = float(value) * (1e-3 if name == "timestamp" else 1.0)
    except (TypeError, ValueError, OverflowError):
        pass
    else:
        if not math.isfinite(seconds):
            raise ValueError(f"{name} is {value!r}, neither a number nor a date")
        return seconds
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{name} is {value!r}, neither a number nor a date") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _known(rows: Iterable[TraceRow]) -> list[int]:
    """Tokens of each prompt that lie in leading blocks which came before; never the last token."""
    seen: set[int] = set()
    known = []
    for row in rows:
        leading = 0
        for block in row.blocks:
            if block not in seen:
                break
            leading += 1
        seen.update(row.blocks)
        known.append(min(leading * _HASHED_TOKENS, row.isl - 1))
    return known


def _variation(rows: Iterable[TraceRow]) -> float:
    """Standard deviation of the time between requests over its mean; 1 where there are no times.

    Times that are rounded to a tick are spread over it.
    """
    times = sorted(row.at_s for row in rows if row.at_s is not None)
    if len(times) < 3 or times[0] == times[-1]:
        return 1.0
    spread = _spread(times)
    gaps = [b - a for a, b in pairwise(spread)]
    mean = sum(gaps) / len(gaps)
    square = sum((g - mean) ** 2 for g in gaps) / len(gaps)
    return min(max(math.sqrt(square) / mean, 0.1), 20.0)


def _spread(times: list[float]) -> list[float]:
    """Equal times, at random until the next one; the same each time."""
    spread: list[float] = []
    rng = random.Random(0)
    at = 0
    while at < len(times):
        end = at
        while end < len(times) and times[end] == times[at]:
            end += 1
        until = times[end] if end < len(times) else times[at]
        count = end - at
        within = (rng.random() for _ in range(count)) if count > 1 else (0.0,)
        spread += sorted(times[at] + (until - times[at]) * share for share in within)
        at = end
    return spread
