"""The one place that reads time. Deciding code never does: it is told the time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Time as seen by one process."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds; differences are meaningful inside one process only."""

    def wall_s(self) -> float:
        """Seconds since the Unix epoch, for records that outlive the process."""


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall_s(self) -> float:
        return time.time()


NS_PER_S = 1_000_000_000
# No deadline, lease or life is longer: about thirty years.
DURATION_MAX_S = 1e9


def ns(seconds: float) -> int:
    """Seconds to nanoseconds."""
    return round(seconds * NS_PER_S)


def seconds(nanoseconds: int) -> float:
    """Nanoseconds to seconds."""
    return nanoseconds / NS_PER_S
