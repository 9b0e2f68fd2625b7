"""Asks the policy where a request goes: among whom, and with what known of its prompt."""

from __future__ import annotations

from dataclasses import replace

from router.decisions import Decisions
from router.fleet import Fleet, Worker
from router.kv_view import KvView
from router.lifecycle import Lifecycle
from router.loading import LoadingCosts, leaves_stored, weigh
from router.placement import Known, Placement, PlacementPolicy, spared
from router.requests import Action


class Placer:
    """policy: may be replaced before the first request. What it answers is told to `decisions`."""

    def __init__(
        self,
        policy: PlacementPolicy,
        fleet: Fleet,
        kv: KvView,
        decisions: Decisions,
        costs: LoadingCosts,
    ) -> None:
        self.policy = policy
        self._fleet = fleet
        self._kv = kv
        self._decisions = decisions
        self._costs = costs

    def place(self, life: Lifecycle, waiting: int, now_ns: int) -> Placement | None:
        """Where the request goes now, or None: nowhere yet. waiting: requests that wait."""
        willing = self._willing(life, now_ns)
        known = self._kv.known(life.request, waiting, now_ns, willing)
        placement = self.policy.place(life.request, willing, known)
        if placement is not None:
            given = len(life.request.prompt) + life.output_tokens
            placement = self._loading(placement, given, known)
        self._decisions.asked(life, placement, willing, known, now_ns)
        return placement

    def reseat(
        self, life: Lifecycle, waiting: int, now_ns: int, out: list[Action]
    ) -> Placement | None:
        """Where a request goes that waits for room on a decode worker, which it has then left; None
        where it stays: nobody else has room now, or that one may be loading stored KV for it."""
        attempt = life.attempt
        assert attempt is not None
        full, prefill = attempt.decode, attempt.prefill
        if not attempt.placement.leave_stored:
            return None
        others = [w for w in self._willing(life, now_ns) if w is not full]
        known = self._kv.known(life.request, waiting, now_ns, others)
        # It does not wait for itself.
        prefill.prompt_tokens -= attempt.to_compute_tokens
        placement = self.policy.place(life.request, others, known)
        prefill.prompt_tokens += attempt.to_compute_tokens
        if placement is None or placement.blocks > placement.decode.room_blocks:
            return None
        life.leave(full, "has kept it waiting while others have room", out)
        self._decisions.returned(life, now_ns)
        given = len(life.request.prompt) + life.output_tokens
        placement = self._loading(placement, given, known)
        self._decisions.asked(life, placement, others, known, now_ns)
        return placement

    def _willing(self, life: Lifecycle, now_ns: int) -> list[Worker]:
        workers = spared(self._fleet.open(), life.failed_on, life.suspects)
        return [w for w in workers if w.refused_until_ns <= now_ns]

    def _loading(self, placement: Placement, given: int, known: Known) -> Placement:
        """Says what is loaded, and where."""
        costs, prefill, decode = self._costs, placement.prefill, placement.decode
        queue_s = costs.prompt_s(prefill.info, prefill.waiting_tokens, 0)
        way = weigh(costs, prefill, given, known, queue_s)
        leave = leaves_stored(costs, prefill, decode, given, known, way.compute_s)
        there = known.cached_tokens(decode)
        if not leave:
            there = max(there, known.stored_tokens(decode))
        return replace(
            placement,
            prefill_known_tokens=way.present_tokens,
            decode_known_tokens=there,
            meet_tokens=way.meet_tokens,
            lender=way.lender,
            leave_stored=leave,
        )
