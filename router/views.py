"""The router as seen from outside, at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from router.fleet import WorkerView
from router.kv_view import KvReport
from router.requests import Counters


@dataclass(frozen=True, slots=True)
class Loads:
    """What is going on. stale_events: dropped, for they came from a former incarnation."""

    waiting: int
    active: int
    counters: Counters
    workers: tuple[WorkerView, ...]
    kv: KvReport
    stale_events: int = 0
