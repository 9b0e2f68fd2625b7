"""Asks the policy where a request goes: among whom, and with what known of its prompt."""

from __future__ import annotations

from dataclasses import replace

from eastwest.ports import ServingCosts
from router.decisions import Decisions
from router.fleet import Fleet
from router.kv_view import KvView
from router.lifecycle import Lifecycle
from router.loading import leaves_stored, weigh
from router.placement import Known, Placement, PlacementPolicy, spared


class Placer:
    """policy: may be replaced before the first request. What it answers is told to `decisions`."""

    def __init__(
        self,
        policy: PlacementPolicy,
        fleet: Fleet,
        kv: KvView,
        decisions: Decisions,
        costs: ServingCosts,
    ) -> None:
        self.policy = policy
        self._fleet = fleet
        self._kv = kv
        self._decisions = decisions
        self._costs = costs

    def place(self, life: Lifecycle, waiting: int, now_ns: int) -> Placement | None:
        """Where the request goes now, or None: nowhere yet. waiting: requests that wait."""
        workers = spared(self._fleet.open(), life.failed_on, life.suspects)
        willing = [w for w in workers if w.refused_until_ns <= now_ns]
        known = self._kv.known(life.request, waiting)
        placement = self.policy.place(life.request, willing, known)
        if placement is not None:
            given = len(life.request.prompt) + life.output_tokens
            placement = self._loading(placement, given, known)
        self._decisions.asked(life, placement, willing, known, now_ns)
        return placement

    def _loading(self, placement: Placement, given: int, known: Known) -> Placement:
        """Says what is loaded, and where."""
        costs, prefill, decode = self._costs, placement.prefill, placement.decode
        cached, stored = known.cached_tokens(prefill), known.stored_tokens(prefill)
        queue_s = costs.prompt_s(prefill.info, prefill.waiting_tokens, 0)
        way = weigh(costs, prefill.info, given, cached, stored, queue_s)
        leave = leaves_stored(costs, prefill, decode, given, known, way.compute_s)
        there = known.cached_tokens(decode) if leave else known.reusable_tokens(decode)
        return replace(
            placement,
            prefill_known_tokens=way.present_tokens,
            decode_known_tokens=there,
            meet_tokens=way.meet_tokens,
            leave_stored=leave,
        )
