"""The entries of a decision log as lines of JSON, and back.

A file begins with a `Header`. A worker is told once, with all that it says of itself, and has a
number from there on; what is seen of it is told again where it differs from what was told last,
and among whom was to be chosen where those are others than the time before. So a line of a fleet
that stands still is short, and a file can be read from its beginning alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from eastwest.config import Policy
from eastwest.layout import DTYPE_BYTES
from eastwest.messages import WorkerInfo
from eastwest.types import Slo
from router.decision_log import (
    LOAD_NUMBERS,
    WORKER_NUMBERS,
    Asked,
    Choice,
    Ended,
    Entry,
    Sight,
    Subject,
)
from router.pace import Factors

FORMAT = "eastwest decisions"
VERSION = 3

_Whole = Annotated[int, Field(ge=-(1 << 53), le=1 << 53)]
_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Finite = Annotated[float, Field(ge=0, le=1e18)]
_Factor = Annotated[float, Field(gt=0, le=1e18)]
_Numbers = tuple[_Whole, ...]
# What is seen of a worker by itself: numbers, last report, pace.
_State = tuple[_Numbers, _Numbers | None, tuple[_Factor, _Factor, _Factor, _Factor, _Factor]]

_INFO = TypeAdapter(WorkerInfo)
_SLO_FIELDS = tuple(f.name for f in fields(Slo))


@dataclass(frozen=True, slots=True)
class Header:
    """The first line: how the policy was set. part: how many files came before, of the same
    process. wall_s: when this one was begun, since the Unix epoch."""

    policy: Policy
    conditional: bool
    late: _Finite
    part: _Count = 0
    wall_s: float = 0.0
    version: _Count = VERSION
    format: Literal["eastwest decisions"] = "eastwest decisions"
    kind: Literal["header"] = "header"


@dataclass(frozen=True, slots=True)
class Gap:
    """So many entries are not there: they came faster than they could be written."""

    entries: _Count
    kind: Literal["gap"] = "gap"


@dataclass(frozen=True, slots=True)
class _Worker:
    number: _Count
    info: WorkerInfo
    costs: Mapping[str, Any] | None
    kind: Literal["worker"] = "worker"


@dataclass(frozen=True, slots=True)
class _Asked:
    """among: None where it is as before. seen: by number of the worker, where it has changed."""

    request: _Count
    at_ns: _Count
    waited_ns: _Count
    prompt: _Count
    output: _Count
    max_tokens: _Count
    slo: dict[str, _Factor]
    waiting: _Count
    usual_output: _Finite
    placed: tuple[_Count, _Count, _Count] | None
    among: tuple[_Count, ...] | None = None
    seen: dict[_Count, _State] = field(default_factory=dict)
    known: dict[_Count, tuple[_Count, _Count]] = field(default_factory=dict)
    usual_slo: dict[str, _Factor] | None = None
    kind: Literal["asked"] = "asked"


@dataclass(frozen=True, slots=True)
class _Ended:
    request: _Count
    at_ns: _Count
    state: str
    output_tokens: _Count
    migrations: _Count
    ttft_s: _Finite | None
    tpot_s: _Finite | None
    kind: Literal["ended"] = "ended"


_LINE: TypeAdapter[Header | Gap | _Worker | _Asked | _Ended] = TypeAdapter(
    Annotated[Header | Gap | _Worker | _Asked | _Ended, Field(discriminator="kind")]
)


class Encoder:
    """Makes the lines of one file, in order."""

    def __init__(self) -> None:
        self._numbers: dict[Subject, int] = {}
        self._told: list[object] = []
        self._among: list[int] | None = None

    def lines(self, entry: Header | Gap | Entry) -> str:
        """One line, and before it those of workers that are new; each with its end."""
        if isinstance(entry, Asked):
            return self._asked(entry)
        values = asdict(entry)
        if isinstance(entry, Ended):
            values = {"kind": "ended", **values}
        return _line(values)

    def _asked(self, entry: Asked) -> str:
        new, among, seen, known = "", [], {}, {}
        for subject, numbers, load, there, pace in entry.seen:
            number = self._numbers.get(subject)
            if number is None:
                number = self._numbers[subject] = len(self._told)
                self._told.append(None)
                info = _INFO.dump_python(subject.info, mode="json")
                costs = subject.costs
                new += _line({"kind": "worker", "number": number, "info": info, "costs": costs})
            among.append(number)
            state = (numbers, load, pace)
            if state != self._told[number]:
                self._told[number] = seen[number] = state
            if there != (0, 0):
                known[number] = there
        values = {
            "kind": "asked", "request": entry.request, "at_ns": entry.at_ns,
            "waited_ns": entry.waited_ns, "prompt": entry.prompt_tokens,
            "output": entry.output_tokens, "max_tokens": entry.max_tokens,
            "slo": asdict(entry.slo),
            "waiting": entry.waiting, "usual_output": entry.usual_output, "placed": None,
        }  # fmt: skip
        if entry.placed is not None:
            prefill, decode, blocks = entry.placed
            values["placed"] = (among[prefill], among[decode], blocks)
        if among != self._among:
            self._among = values["among"] = among
        if seen:
            values["seen"] = seen
        if known:
            values["known"] = known
        if entry.usual_slo is not None:
            values["usual_slo"] = asdict(entry.usual_slo)
        return new + _line(values)


class Decoder:
    """Reads the lines of one file, in order. What is wrong with one is a `ValueError`'s message."""

    def __init__(self) -> None:
        self._subjects: list[Subject] = []
        self._told: list[_State | None] = []
        self._among: tuple[int, ...] = ()

    def header(self, line: bytes) -> Header:
        """The first line."""
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError("this is no decision log: its first line is not a header of one")
        if values.get("version") != VERSION:
            raise ValueError(f"version is {values.get('version')!r}; allowed: {VERSION}")
        header = _parsed(line)
        assert isinstance(header, Header)
        return header

    def entry(self, line: bytes) -> Entry | Gap | None:
        """Any other line; None for one that only tells of a worker."""
        parsed = _parsed(line)
        match parsed:
            case _Worker():
                self._meet(parsed)
                return None
            case _Asked():
                return self._asked(parsed)
            case _Ended():
                return Ended(
                    parsed.request, parsed.at_ns, parsed.state, parsed.output_tokens,
                    parsed.migrations, parsed.ttft_s, parsed.tpot_s,
                )  # fmt: skip
            case Gap():
                return parsed
        raise ValueError("a second header; allowed: one, on the first line")

    def _meet(self, line: _Worker) -> None:
        if line.number != len(self._subjects):
            raise ValueError(f"worker {line.number} is told; allowed: {len(self._subjects)}")
        info = line.info
        sizes = (info.block_tokens, info.num_blocks, info.running_max, info.step_tokens)
        if not all(0 < size <= 1 << 53 for size in sizes):
            raise ValueError(f"worker {line.number} has sizes {sizes}; allowed: above 0")
        if (dtype := info.model.kv.dtype) not in DTYPE_BYTES:
            allowed = ", ".join(DTYPE_BYTES)
            raise ValueError(f"worker {line.number} has KV of {dtype!r}; allowed: {allowed}")
        self._subjects.append(Subject(info, line.costs))
        self._told.append(None)

    def _asked(self, line: _Asked) -> Asked:
        for number, state in line.seen.items():
            numbers, load, _ = state
            columns = len(numbers), len(LOAD_NUMBERS if load is None else load)
            if columns != (len(WORKER_NUMBERS), len(LOAD_NUMBERS)):
                raise ValueError(
                    f"worker {number} is seen with {columns[0]} and {columns[1]} numbers"
                )
            self._check(number)
            self._told[number] = state
        if line.among is not None:
            for number in line.among:
                self._check(number)
            self._among = line.among
        seen = []
        for number in self._among:
            told = self._told[number]
            if told is None:
                raise ValueError(f"worker {number} is chosen among, and nothing is told of it")
            numbers, load, pace = told
            known = line.known.get(number, (0, 0))
            seen.append(Sight(self._subjects[number], numbers, load, known, Factors(*pace)))
        return Asked(
            line.request, line.at_ns, line.waited_ns, line.prompt, line.output, line.max_tokens,
            _slo(line.slo), line.waiting, line.usual_output, tuple(seen), self._choice(line),
            None if line.usual_slo is None else _slo(line.usual_slo),
        )  # fmt: skip

    def _choice(self, line: _Asked) -> Choice | None:
        if line.placed is None:
            return None
        prefill, decode, blocks = line.placed
        for number in (prefill, decode):
            if number not in self._among:
                raise ValueError(f"it is placed on worker {number}, which was not to be chosen")
        return Choice(self._among.index(prefill), self._among.index(decode), blocks)

    def _check(self, number: int) -> None:
        if number >= len(self._subjects):
            raise ValueError(f"worker {number} is not known; allowed: those told before")


def _slo(values: dict[str, float]) -> Slo:
    if values.keys() != set(_SLO_FIELDS):
        raise ValueError(f"slo has {', '.join(values)}; allowed: {', '.join(_SLO_FIELDS)}")
    return Slo(**values)


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":")) + "\n"


def _parsed(line: bytes) -> Header | Gap | _Worker | _Asked | _Ended:
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error
