"""Who waits for room on a decode worker although another one has some.

Where a reservation goes is decided by an estimate, and other routers fill workers, too. One that is
not answered for long stands in line behind them: it is given up for a place on another worker,
`MOVES_MAX` times for a request at most, so that nobody is sent to and fro. It costs no attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eastwest.clock import ns
from router.fleet import Fleet
from router.lifecycle import Lifecycle, State
from router.placement import Placement
from router.placing import Placer
from router.requests import Action

MOVES_MAX = 2
# What waiting for room may take of the time that the first token should.
_SHARE = 0.25
# A pulse looks for room for so many.
_LOOKS_MAX = 16


class Reseating:
    """period_ns: between pulses, at each of which it is asked."""

    def __init__(self, fleet: Fleet, placer: Placer, period_ns: int) -> None:
        self._fleet = fleet
        self._placer = placer
        self._period_ns = period_ns

    def moves(
        self, lives: Iterable[Lifecycle], waiting: int, now_ns: int, out: list[Action]
    ) -> Iterator[tuple[Lifecycle, Placement]]:
        """Who goes where, one after the other: each has left its workers, and is to be placed
        before the next. waiting: requests that wait in the queue."""
        for life in self._due(lives, now_ns):
            assert life.attempt is not None
            full = life.attempt.decode
            placement = self._placer.reseat(life, waiting, now_ns, out)
            if placement is not None:
                life.reseated += 1
                # As good as refused: others need not come to wait there.
                full.refused_until_ns = now_ns + self._period_ns
                yield life, placement

    def _due(self, lives: Iterable[Lifecycle], now_ns: int) -> list[Lifecycle]:
        """Those who have waited long enough, and for whom somebody may have room, in order."""
        most = max((w.room_blocks for w in self._fleet.open() if w.decodes), default=0)
        found: list[Lifecycle] = []
        for life in lives:
            if life.state is State.RESERVING and life.reseated < MOVES_MAX:
                attempt = life.attempt
                assert attempt is not None
                patience_ns = min(self._period_ns, ns(_SHARE * life.request.slo.ttft_s))
                if now_ns - attempt.asked_ns >= patience_ns and attempt.placement.blocks <= most:
                    found.append(life)
                    if len(found) == _LOOKS_MAX:
                        break
        return found
