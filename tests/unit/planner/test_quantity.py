"""Quantities as people write them, and what is said of those that are off."""

from __future__ import annotations

import pytest

from eastwest.errors import ConfigError
from planner.nearest import nearest
from planner.quantity import count_of, duration_s, seconds_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2), ("20ms", 0.02), ("1.5 s", 1.5), (" 500us ", 5e-4), ("500µs", 5e-4), ("1min", 60)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text, "--ttft", 1e-4, 3600) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["20", "20mss", "ms", "", "-2s", "1e3s", "2 s s", "2,5s", "nans"])
def test_a_duration_without_a_unit_or_with_an_odd_one_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--tpot is .*; allowed: a number and its unit, such as"):
        duration_s(text, "--tpot", 1e-4, 10)


@pytest.mark.parametrize(
    ("text", "guess"),
    [("2000s", "did you mean 2000us"), ("20s", "did you mean 20ms"), ("20min", "did you mean 20ms"),
     ("0s", "$")],
)  # fmt: skip
def test_an_implausible_duration_is_refused_with_a_guess(text: str, guess: str) -> None:
    with pytest.raises(ConfigError, match=f"--tpot is {text}; allowed: 100 us to 10 s.*{guess}"):
        duration_s(text, "--tpot", 1e-4, 10)


@pytest.mark.parametrize(
    ("text", "count"), [("8192", 8192), ("8k", 8192), ("8K", 8192), ("1.5k", 1536), ("1m", 1 << 20)]
)
def test_counts(text: str, count: float) -> None:
    assert count_of(text, "--isl", 1, 1 << 22) == count


@pytest.mark.parametrize(
    ("text", "message"),
    [("8kk", "a number such as 8192 or 8k"), ("-1", "a number such as"), ("", "a number such as"),
     ("0", "allowed: 1 to"), ("9" * 400, "allowed: 1 to"), ("nan", "a number such as")],
)  # fmt: skip
def test_counts_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        count_of(text, "--isl", 1, 1 << 22)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2, "2 s"), (0.02, "20 ms"), (0.0167, "16.7 ms"), (2e-6, "2 us"), (119, "119 s"),
     (180, "3 min"), (1e-3, "1 ms")],
)  # fmt: skip
def test_seconds_as_a_person_writes_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_nearest_names_come_first() -> None:
    known = ["alpha-one", "alpha-two", "beta"]
    assert nearest("Alpha_One", known).startswith("did you mean alpha-one or alpha-two? allowed: ")
    assert nearest("two", known).startswith("did you mean alpha-two? ")
    assert nearest("zzz", known) == "allowed: alpha-one, alpha-two, beta"
