"""How a worker leaves: no new work, what runs ends, sessions are stored, and then it is gone.

    SERVING ──begin──▶ DRAINING ──idle──▶ SETTLING ──stored──▶ DRAINED ──dismissed──▶ left
       ▲                  │                  │
       └──────cancel──────┴──────────────────┘

    DRAINING  reservations are refused; a prompt whose reservation was made elsewhere is taken
    SETTLING  nothing runs, nothing is taken; sessions that rest on the device go to the store
    DRAINED   every router was told, and says that it has let go

Routers move at the deadline what still runs. Work of one that has not done so `GRACE_S` later is
given back to it, and one that says nothing for as long is not waited for.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from eastwest.clock import Clock, ns, seconds
from eastwest.errors import Draining, Phase
from eastwest.messages import (
    Command,
    Dismiss,
    Drain,
    Drained,
    Event,
    Failed,
    Load,
    Prefill,
    Reserve,
    Undrain,
)

log = logging.getLogger(__name__)

GRACE_S = 5.0
CHECK_S = 0.05


class Side(Protocol):
    """One phase of a replica."""

    @property
    def idle(self) -> bool:
        """Whether nothing is done or held here for a request."""

    def give_back(self, error: Draining) -> None:
        """End all work; its routers are told."""


class Sessions(Protocol):
    """What rests on the device."""

    spilled_sessions: int

    def hasten(self, *, hasten: bool) -> None:
        """Store what rests without waiting for it to be idle long; or as usual again."""

    async def empty(self) -> int:
        """Try to store all that rests; how many sessions the store did not take."""


class LeaveState(enum.Enum):
    SERVING = enum.auto()
    DRAINING = enum.auto()
    SETTLING = enum.auto()
    DRAINED = enum.auto()


class Leaving:
    """Of one incarnation, on its event loop. `left` is set when it may end.

    routers: those that have a stream now. emit: puts an event on one's stream.
    """

    def __init__(
        self,
        *,
        sides: Sequence[Side],
        sessions: Sessions,
        load: Callable[[], Load],
        routers: Callable[[], Collection[str]],
        emit: Callable[[str, Event], None],
        clock: Clock,
    ) -> None:
        self._sides = sides
        self._sessions = sessions
        self._load = load
        self._routers = routers
        self._emit = emit
        self._clock = clock
        self._begun = asyncio.Event()
        self._deadline_ns = 0
        self._spilled_before = 0
        self._waited_for: set[str] = set()
        self.state = LeaveState.SERVING
        self.left = asyncio.Event()

    @property
    def left_s(self) -> float | None:
        """See `Load.draining_s`."""
        if self.state is LeaveState.SERVING:
            return None
        return max(0.0, seconds(self._deadline_ns - self._clock.now_ns()))

    def handle(self, router_id: str, command: Command) -> bool:
        """Whether a command was about leaving, or was refused because of it."""
        match command:
            case Drain():
                self.begin(command.timeout_s)
            case Undrain():
                self.cancel()
            case Dismiss():
                self._waited_for.discard(router_id)
            case Reserve() if self.state is not LeaveState.SERVING:
                self._refuse(router_id, command.request_id, Phase.RESERVATION)
            case Prefill() if self.state in (LeaveState.SETTLING, LeaveState.DRAINED):
                self._refuse(router_id, command.request_id, Phase.QUEUE)
            case _:
                return False
        return True

    def begin(self, timeout_s: float) -> None:
        """Drain, or have the soonest deadline of all that were given."""
        deadline_ns = self._clock.now_ns() + ns(min(max(timeout_s, 0.0), 1e9))
        if self.state is LeaveState.SERVING:
            self.state, self._deadline_ns = LeaveState.DRAINING, deadline_ns
            self._spilled_before = self._sessions.spilled_sessions
            self._sessions.hasten(hasten=True)
            self._begun.set()
        self._deadline_ns = min(self._deadline_ns, deadline_ns)
        self._report()

    def cancel(self) -> None:
        """Serve again, unless it is too late."""
        if self.state in (LeaveState.DRAINING, LeaveState.SETTLING):
            self.state = LeaveState.SERVING
            self._begun.clear()
            self._sessions.hasten(hasten=False)
        self._report()

    async def run(self) -> None:
        """Ends when the worker has left."""
        while True:
            await self._begun.wait()
            while self.state is LeaveState.DRAINING and not self._idle():
                if self._clock.now_ns() >= self._deadline_ns + ns(GRACE_S):
                    for side in self._sides:
                        side.give_back(Draining("the worker leaves; others may go on"))
                await asyncio.sleep(CHECK_S)
            if self.state is not LeaveState.DRAINING:
                continue
            self.state = LeaveState.SETTLING
            dropped = await self._sessions.empty()
            if self._in(LeaveState.SETTLING):
                await self._part(dropped)
                return

    def _in(self, state: LeaveState) -> bool:
        """Compared so that a checker of types does not take it for what it was before."""
        return self.state is state

    async def _part(self, dropped: int) -> None:
        self.state = LeaveState.DRAINED
        self._report()
        stored = self._sessions.spilled_sessions - self._spilled_before
        self._waited_for = set(self._routers())
        for router_id in sorted(self._waited_for):
            self._emit(router_id, Drained(stored, dropped))
        try:
            async with asyncio.timeout(GRACE_S):
                while self._waited_for & set(self._routers()):  # noqa: ASYNC110 - and streams end
                    await asyncio.sleep(CHECK_S)
        except TimeoutError:
            log.warning("leaves without a word of %s", ", ".join(sorted(self._waited_for)))
        self.left.set()

    def _idle(self) -> bool:
        return all(side.idle for side in self._sides)

    def _refuse(self, router_id: str, request_id: str, phase: Phase) -> None:
        error = Draining("the worker takes no new work, for it leaves")
        self._emit(router_id, Failed.of(request_id, error, phase))

    def _report(self) -> None:
        """All routers hear at once how it stands."""
        for router_id in sorted(self._routers()):
            self._emit(router_id, self._load())
