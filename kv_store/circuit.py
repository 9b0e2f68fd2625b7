"""A circuit breaker that decides whether the store is asked at all. No I/O; told the time.

States: CLOSED (every call goes through), OPEN (none does, until the retry time), HALF_OPEN (one
probe is under way, none beside it). One failure opens it, for `retry_after_s`; each failed probe
doubles that, up to `2**DOUBLINGS_MAX` times, with up to `JITTER` on top so that many processes
do not come back together. Calls that began before it opened no longer change it.
"""

from __future__ import annotations

import enum
from random import Random

from eastwest.clock import ns, seconds

DOUBLINGS_MAX = 5
JITTER = 0.5


class CircuitState(enum.StrEnum):
    """See the module docstring."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Admission(enum.Enum):
    """The answer to one call; given back with the call's outcome."""

    PASS = enum.auto()
    PROBE = enum.auto()
    REFUSED = enum.auto()


class Circuit:
    """Each admitted call ends with `succeeded`, `failed` or `abandoned`."""

    def __init__(self, retry_after_s: float, rng: Random) -> None:
        self._retry_after_s = retry_after_s
        self._rng = rng
        self._failures = 0  # in a row, each of which opened the circuit
        self._retry_at_ns = 0
        self.state = CircuitState.CLOSED

    def admit(self, now_ns: int) -> Admission:
        """Whether a call may be made at this time."""
        if self.state is CircuitState.CLOSED:
            return Admission.PASS
        if self.state is CircuitState.OPEN and now_ns >= self._retry_at_ns:
            self.state = CircuitState.HALF_OPEN
            return Admission.PROBE
        return Admission.REFUSED

    def succeeded(self, admission: Admission) -> None:
        """The store answered."""
        if admission is Admission.PROBE:
            self.state = CircuitState.CLOSED
            self._failures = 0

    def failed(self, admission: Admission, now_ns: int) -> None:
        """The store did not answer."""
        if admission is Admission.PASS and self.state is not CircuitState.CLOSED:
            return
        factor = 1 << min(self._failures, DOUBLINGS_MAX)
        delay_s = self._retry_after_s * factor * (1 + JITTER * self._rng.random())
        self._failures += 1
        self._retry_at_ns = now_ns + ns(delay_s)
        self.state = CircuitState.OPEN

    def abandoned(self, admission: Admission) -> None:
        """The call ended without showing anything; the next one may probe instead."""
        if admission is Admission.PROBE and self.state is CircuitState.HALF_OPEN:
            self.state = CircuitState.OPEN

    def retry_in_s(self, now_ns: int) -> float:
        """Seconds until a call may be admitted; 0 while a probe is under way or none is due."""
        if self.state is not CircuitState.OPEN:
            return 0.0
        return max(0.0, seconds(self._retry_at_ns - now_ns))
