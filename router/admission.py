"""Who may enter: the bounds of the queue in front of placement, and the pace at which it empties.

New requests are refused when `queue_max` wait, unless the tenant that asks has less than its share
of them: then the last one in line of the tenant with the most waiting makes way. A request whose
first token cannot come before its deadline is refused at once; or, where that is wanted
(`refuse_beyond: slo`), before the time that it should take. That is foreseen from the present pace
of the queue, and from what its prompt takes at the least (`router.foresight`). Where the queue is
to blame, it may come again; where the prompt alone takes too long, that would not help, and the
error says so. Those that came back were admitted before, so the queue holds
`queue_max + active_max` at most.
"""

from __future__ import annotations

from eastwest.clock import seconds
from eastwest.config import RouterConfig
from eastwest.errors import EastWestError, Overloaded, Phase, TooLarge, Unavailable
from router.fair_queue import FairQueue
from router.fleet import Fleet
from router.foresight import Foresight
from router.lifecycle import Lifecycle
from router.requests import Request

_RETRY_MIN_S = 1.0
_RETRY_MAX_S = 60.0
# Departures under load before the pace is trusted to refuse anybody.
_PACE_AFTER = 16
_PACE_SMOOTHING = 0.05
# A prediction is this much too dark before it costs a request its chance.
_DOUBT = 2.0


class Admission:
    """The gate of one queue."""

    def __init__(
        self, config: RouterConfig, queue: FairQueue, fleet: Fleet, foresight: Foresight
    ) -> None:
        self._queue_max = config.queue_max
        self._by_slo = config.refuse_beyond == "slo"
        self._queue = queue
        self._fleet = fleet
        self._foresight = foresight
        self._pace = _Pace()

    def admit(self, request: Request, now_ns: int) -> Lifecycle | None:
        """Let one more wait. Returns whoever must make way. Raises `Unavailable` where no worker
        has ever been known, `InvalidArgument` where none could ever hold it, `Overloaded` with a
        hint, and `TooLarge` where its prompt takes too long even without the others."""
        if not len(self._fleet):
            raise Unavailable("no worker has connected to this router yet", phase=Phase.ADMISSION)
        self._fleet.check_fits(request)
        self._check_in_time(request, now_ns)
        if len(self._queue) < self._queue_max:
            return None
        share = self._queue_max // self._tenants_with(request)
        victim = self._queue.latest_of_largest()
        own = victim is not None and victim.request.salt == request.salt
        if victim is None or own or self._queue.waiting_of(request.salt) >= share:
            raise self.full()
        return victim

    def _check_in_time(self, request: Request, now_ns: int) -> None:
        wait_s = self._wait_s(request)
        left_s, end = seconds(request.deadline_ns - now_ns), "its deadline"
        if self._by_slo and request.slo.ttft_s < left_s:
            left_s, end = request.slo.ttft_s, "the time its first token should take"
        within_s = _DOUBT * left_s
        rest_s = within_s - wait_s
        prompt_s = self._foresight.prompt_s(request, rest_s if rest_s > 0 else within_s, now_ns)
        if prompt_s > within_s:
            raise TooLarge(
                f"a prompt of {len(request.prompt)} tokens takes {prompt_s:.3g} s here at the "
                f"least; allowed: at most {left_s:.3g} s, {end}; trying again does not help",
                phase=Phase.ADMISSION,
            )
        if prompt_s > rest_s or rest_s < 0:
            after = f", and its prompt then takes {prompt_s:.1f} s" if prompt_s else ""
            raise Overloaded(
                f"its turn is expected in {wait_s:.1f} s{after}; allowed: at most {left_s:.1f} s, "
                f"{end}",
                phase=Phase.ADMISSION,
                retry_after_s=self.retry_after_s(),
            )

    def full(self) -> EastWestError:
        """Why nobody else may wait."""
        return Overloaded(
            f"{len(self._queue)} requests are waiting; allowed: {self._queue_max}",
            retry_after_s=self.retry_after_s(),
        )

    def departed(self, now_ns: int) -> None:
        """A request that was being served has ended."""
        self._pace.departed(now_ns, busy=len(self._queue) > 0)

    def retry_after_s(self) -> float:
        """How long those who wait will take to be served, at the present pace."""
        return min(max(_RETRY_MIN_S, self._pace.each_s * len(self._queue)), _RETRY_MAX_S)

    def _wait_s(self, request: Request) -> float:
        """Until the turn of a new request of this tenant; 0 where there is nothing to go by.

        Tenants take turns, so that as many requests of each other one are before it as of its
        own, and no more than wait at all.
        """
        if not self._pace.known:
            return 0.0
        own = self._queue.waiting_of(request.salt)
        ahead = min(len(self._queue), (own + 1) * self._tenants_with(request) - 1)
        return ahead * self._pace.each_s

    def _tenants_with(self, request: Request) -> int:
        """Tenants of which somebody waits once this request does."""
        return self._queue.tenants_waiting + (self._queue.waiting_of(request.salt) == 0)


class _Pace:
    """Time between departures while somebody waited; what passed in idleness says nothing."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._each_ns = 0.0
        self._count = 0

    @property
    def known(self) -> bool:
        return self._count >= _PACE_AFTER

    @property
    def each_s(self) -> float:
        return seconds(round(self._each_ns))

    def departed(self, now_ns: int, *, busy: bool) -> None:
        if self._last_ns is not None:
            gap = now_ns - self._last_ns
            weight = max(_PACE_SMOOTHING, 1 / (self._count + 1))
            self._each_ns += weight * (gap - self._each_ns)
            self._count += 1
        self._last_ns = now_ns if busy else None
