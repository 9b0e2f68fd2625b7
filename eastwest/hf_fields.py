"""Typed reading of config.json objects; every refusal names the field, its value and what is
allowed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

from eastwest.errors import ModelError


class HfFields:
    """The fields of one object. `given` leaves out what is null; `where` opens each refusal."""

    def __init__(self, where: str, fields: Mapping[str, Any]) -> None:
        self.where = where
        self._all = fields
        self.given = {key: value for key, value in fields.items() if value is not None}

    def error(self, field: str, allowed: str) -> ModelError:
        value = self.given.get(field, "absent")
        return ModelError(f"{self.where}: {field} is {value!r}; allowed: {allowed}")

    def count(self, field: str, default: int | None = None, at_least: int = 1) -> int:
        value = self.given.get(field, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise self.error(field, f"an integer from {at_least}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        """From 0."""
        value = self.given.get(field, default)
        if not _is_number(value) or not 0 <= value < 1e30:
            raise self.error(field, "a number from 0")
        return float(value)

    def positive(self, field: str, default: float | None = None) -> float:
        value = self.given.get(field, default)
        if not _is_number(value) or not 0 < value < 1e30:
            raise self.error(field, "a number above 0")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self.given.get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, "true or false")
        return value

    def one_of(self, field: str, allowed: Collection[str], default: str) -> str:
        value = self.given.get(field, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.error(field, ", ".join(allowed))
        return value

    def null(self, field: str) -> bool:
        return field in self._all and self._all[field] is None

    def sub(self, field: str) -> HfFields:
        value = self.given.get(field, {})
        if not isinstance(value, Mapping):
            raise self.error(field, "an object")
        return HfFields(f"{self.where}: {field}", value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
