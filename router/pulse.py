"""Heartbeats to the workers that are up, and an ear for those that are silent."""

from __future__ import annotations

from eastwest.clock import ns
from eastwest.messages import Heartbeat
from router.fleet import Fleet, Worker
from router.requests import Action


class Pulse:
    """Beats every `period_ns` while a worker is up. next_ns: when, None while none is."""

    def __init__(self, fleet: Fleet, heartbeat_s: float, timeout_s: float) -> None:
        self._fleet = fleet
        self.period_ns = ns(heartbeat_s)
        self._silence_ns = ns(timeout_s)
        self.next_ns: int | None = None

    def begin(self, now_ns: int) -> None:
        """A worker is up."""
        if self.next_ns is None:
            self.next_ns = now_ns + self.period_ns

    def due(self, now_ns: int) -> bool:
        return self.next_ns is not None and now_ns >= self.next_ns

    def beat(self, now_ns: int, out: list[Action]) -> list[Worker]:
        """What is due: heartbeats. Returns the workers that have been silent for too long, which
        get none."""
        assert self.next_ns is not None
        late_ns = now_ns - self.next_ns
        silent: list[Worker] = []
        for worker in self._fleet.up():
            # A pulse that is late by more than its period says that this process has slept, and
            # that events may lie unread: that time is not the worker's silence.
            if late_ns > self.period_ns:
                worker.heard_ns += late_ns
            if now_ns - worker.heard_ns >= self._silence_ns:
                silent.append(worker)
            else:
                out.append(worker.send(Heartbeat()))
        return silent

    def follow(self, now_ns: int) -> None:
        """Once the silent have been dealt with: go on while a worker is up."""
        self.next_ns = now_ns + self.period_ns if self._fleet.up() else None
