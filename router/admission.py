"""Who may enter, and who waits: the bounded queue in front of placement.

First come, first served; a request that has lost its workers goes back to the head. New requests
are refused when `queue_max` wait. Those that came back were admitted before, so the queue holds
`queue_max + active_max` at most.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from eastwest.clock import seconds
from eastwest.errors import Overloaded
from router.lifecycle import Lifecycle

_PACE_WINDOW = 64
_RETRY_MIN_S = 1.0
_RETRY_MAX_S = 60.0


class Admission:
    """The queue, and the pace at which requests leave the system."""

    def __init__(self, queue_max: int) -> None:
        self._queue_max = queue_max
        self._queue: OrderedDict[str, Lifecycle] = OrderedDict()
        self._departures_ns: deque[int] = deque(maxlen=_PACE_WINDOW)

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._queue

    def check(self, now_ns: int) -> None:
        """Raise `Overloaded` where one more may not wait."""
        if len(self._queue) >= self._queue_max:
            raise Overloaded(
                f"{len(self._queue)} requests are waiting; allowed: {self._queue_max}",
                retry_after_s=self.retry_after_s(now_ns),
            )

    def enter(self, life: Lifecycle) -> None:
        """To the end of the queue."""
        self._queue[life.request.request_id] = life

    def reenter(self, life: Lifecycle) -> None:
        """To its head."""
        self._queue[life.request.request_id] = life
        self._queue.move_to_end(life.request.request_id, last=False)

    def head(self) -> Lifecycle | None:
        return next(iter(self._queue.values()), None)

    def leave(self, request_id: str) -> None:
        """Out of the queue, wherever in it. Idempotent."""
        self._queue.pop(request_id, None)

    def departed(self, now_ns: int) -> None:
        """A request that was being served has ended."""
        self._departures_ns.append(now_ns)

    def retry_after_s(self, now_ns: int) -> float:
        """How long those who wait will take to be served, at the pace of the last departures."""
        if not self._departures_ns:
            return _RETRY_MIN_S
        each_s = seconds(now_ns - self._departures_ns[0]) / len(self._departures_ns)
        return min(max(_RETRY_MIN_S, each_s * len(self._queue)), _RETRY_MAX_S)
