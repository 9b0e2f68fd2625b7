"""Quantities as people write them: ``2s``, ``20ms``, ``8k``; and what is a plausible one.

A duration needs its unit: a bare 20 for a time per token is off by a thousand as often as not.
"""

from __future__ import annotations

import re

from eastwest.errors import ConfigError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|µs|ms|s|min)")
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([km]?)", re.IGNORECASE)
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def duration_s(text: str, what: str, low_s: float, high_s: float) -> float:
    """A duration in seconds. Raises `ConfigError` where it has no unit, or is outside
    ``[low_s, high_s]``, which is what makes sense for `what`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{what} is {text!r}; allowed: a number and its unit, such as 2s or 20ms")
    value = float(match[1]) * _SECONDS[match[2]]
    if not low_s <= value <= high_s:
        near = [unit for unit, s in _SECONDS.items() if low_s <= float(match[1]) * s <= high_s]
        guess = f"; did you mean {match[1]}{near[0]}?" if near else ""
        raise ConfigError(
            f"{what} is {text}; allowed: {seconds_text(low_s)} to {seconds_text(high_s)}{guess}"
        )
    return value


def count_of(text: str, what: str, low: float, high: float) -> float:
    """A count, ``8192`` or ``8k`` (k is 1024 of tokens, m its square). Raises `ConfigError`."""
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{what} is {text!r}; allowed: a number such as 8192 or 8k")
    value = float(match[1]) * {"": 1, "k": 1024, "m": 1 << 20}[match[2].lower()]
    if not low <= value <= high:
        raise ConfigError(f"{what} is {text}; allowed: {low:g} to {high:g}")
    return value


def seconds_text(seconds: float) -> str:
    """A duration as a person writes it: three digits and the unit that suits."""
    for unit, scale in (("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale * (2 if unit == "min" else 1):
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
