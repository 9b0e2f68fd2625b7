"""Asks the policy where a request goes: among whom, and with what known of its prompt."""

from __future__ import annotations

from dataclasses import replace

from router.decisions import Decisions
from router.fleet import Fleet
from router.kv_view import KvView
from router.lifecycle import Lifecycle
from router.placement import Placement, PlacementPolicy, spared


class Placer:
    """policy: may be replaced before the first request. What it answers is told to `decisions`."""

    def __init__(
        self, policy: PlacementPolicy, fleet: Fleet, kv: KvView, decisions: Decisions
    ) -> None:
        self.policy = policy
        self._fleet = fleet
        self._kv = kv
        self._decisions = decisions

    def place(self, life: Lifecycle, waiting: int, now_ns: int) -> Placement | None:
        """Where the request goes now, or None: nowhere yet. waiting: requests that wait."""
        workers = spared(self._fleet.open(), life.failed_on, life.suspects)
        willing = [w for w in workers if w.refused_until_ns <= now_ns]
        known = self._kv.known(life.request, waiting)
        placement = self.policy.place(life.request, willing, known)
        if placement is not None:
            placement = replace(
                placement,
                prefill_known_tokens=known.reusable_tokens(placement.prefill),
                decode_known_tokens=known.reusable_tokens(placement.decode),
            )
        self._decisions.asked(life, placement, willing, known, now_ns)
        return placement
