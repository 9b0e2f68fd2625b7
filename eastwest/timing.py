"""Where the time of one request went, in nanoseconds that sum exactly to their totals.

A total is measured on one clock (the router's). Workers report durations of their own clocks;
`split` fits those into the total, so no clock is ever compared with another host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def split(total_ns: int, parts_ns: Sequence[int]) -> tuple[list[int], int]:
    """Cut `parts_ns` (in order of trust) to fit into `total_ns`; also the rest, at least 0."""
    rest = max(0, total_ns)
    fitted = []
    for part in parts_ns:
        fitted.append(min(max(0, part), rest))
        rest -= fitted[-1]
    return fitted, rest


@dataclass(frozen=True, slots=True)
class TtftParts:
    """Request accepted to first token delivered; the fields sum to it.

    admission: validation, tokenisation and the decision to take the request. queue: waiting in
    the router and in the prefill worker. reservation: the decode worker making room, reading
    stored KV included. prefill: first chunk started to first token known to the router.
    delivery: from there until the token was handed to the client's stream.
    """

    admission_ns: int
    queue_ns: int
    reservation_ns: int
    prefill_ns: int
    delivery_ns: int

    @property
    def total_ns(self) -> int:
        return (
            self.admission_ns
            + self.queue_ns
            + self.reservation_ns
            + self.prefill_ns
            + self.delivery_ns
        )


@dataclass(frozen=True, slots=True)
class SecondTokenParts:
    """First to second token, as known to the router; the fields sum to it.

    exposed_transfer: the part of the KV transfer that nothing hid. import: last frame to commit.
    decode_queue: commit to the start of the first step. first_step: that step. migration: all of
    it, where the request lost its workers in between and the second token came from a prefill
    worker that took it over; else 0.
    """

    exposed_transfer_ns: int
    import_ns: int
    decode_queue_ns: int
    first_step_ns: int
    migration_ns: int = 0

    @property
    def total_ns(self) -> int:
        return (
            self.exposed_transfer_ns
            + self.import_ns
            + self.decode_queue_ns
            + self.first_step_ns
            + self.migration_ns
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """The timing of a finished request. `second` is None where there was no second token."""

    ttft: TtftParts
    second: SecondTokenParts | None
    e2e_ns: int
