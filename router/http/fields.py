"""One JSON object from outside, taken apart field by field.

Every reader takes its field out, so that what is left at the end is what this version does not
know. A field that is null counts as absent. Whatever is not as it should be raises `Refused`,
which names the field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from eastwest.errors import InvalidArgument

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
UINT32_MAX = 2**32 - 1

_SHOWN_CHARS = 60


class Refused(InvalidArgument):
    """Input that cannot be accepted. param: the field at fault, as the client spells it."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(message)
        self.param = param


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a request's body is."""
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except RecursionError:
        raise Refused(None, "the body is nested too deeply; allowed: a JSON object") from None
    except ValueError as error:  # of JSON, of Unicode or of a number that is too long
        raise Refused(None, f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(None, f"the body is {shown(value)}; allowed: a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def shown(value: object) -> str:
    """A value as a message quotes it: short, whatever the client sent."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            text = json.dumps(value[: _SHOWN_CHARS + 1])
        case _:
            text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def is_integer(value: object, low: int, high: int) -> TypeGuard[int]:
    """Whether a JSON value is an integer in this range; true and false are none."""
    return type(value) is int and low <= value <= high


def checked_text(value: object, where: str) -> str:
    """A JSON value as text."""
    if not isinstance(value, str):
        raise Refused(where, f"{where} is {shown(value)}; allowed: a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(
            where, f"{where} holds half a surrogate pair; allowed: valid Unicode"
        ) from None
    return value


class Fields:
    """The fields of one object that are not taken yet. where: its path in the body, "" for all."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise Refused(where or None, f"{where} is {shown(value)}; allowed: an object")
        self._where = where
        self._left: dict[str, Any] = {k: v for k, v in value.items() if v is not None}

    def path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def take(self, name: str) -> Any:
        """The field as it is; None where it is absent."""
        return self._left.pop(name, None)

    def refused(self, name: str, value: object, allowed: str) -> Refused:
        """The error that says so."""
        path = self.path(name)
        return Refused(path, f"{path} is {shown(value)}; allowed: {allowed}")

    def required(self, name: str, allowed: str) -> Any:
        value = self.take(name)
        if value is None:
            path = self.path(name)
            raise Refused(path, f"{path} is missing; allowed: {allowed}")
        return value

    def text(self, name: str) -> str | None:
        value = self.take(name)
        return None if value is None else checked_text(value, self.path(name))

    def flag(self, name: str) -> bool | None:
        value = self.take(name)
        if value is None or isinstance(value, bool):
            return value
        raise self.refused(name, value, "true or false")

    def number(self, name: str) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise self.refused(name, value, "a number")
        try:
            return float(value)
        except OverflowError:
            raise self.refused(name, value, "a number") from None

    def integer(self, name: str, low: int = INT32_MIN, high: int = INT32_MAX) -> int | None:
        value = self.take(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or is_integer(value, low, high):
            return value
        raise self.refused(name, value, f"an integer from {low} to {high}")

    def neutral(self, allowed: Mapping[str, Sequence[object]]) -> None:
        """Take fields of features that are not offered; they may say so, and nothing else."""
        for name, values in allowed.items():
            value = self.take(name)
            if value is not None and value not in values:
                raise self.refused(name, value, " or ".join(json.dumps(v) for v in values))

    def ignore(self, names: Iterable[str]) -> None:
        """Take fields that change nothing here."""
        for name in names:
            self.take(name)

    def finish(self) -> None:
        """Refuse what is left."""
        if self._left:
            name = next(iter(self._left))
            path = self.path(name[:_SHOWN_CHARS])
            raise Refused(path, f"{shown(path)} is not a field that this version knows")
