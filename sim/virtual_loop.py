"""An asyncio event loop in virtual time: where nothing is ready, the clock jumps to the next timer.

No sockets and no threads: work for executors runs at once, in place. Tasks run in the order in
which they became ready, timers by time and then by order of asking, so that a run depends on
nothing but its code and its seed.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Stalled(RuntimeError):
    """Nothing is ready and no timer is set, yet somebody waits."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Run code on it with `run`."""

    # What the base class keeps, and does not declare.
    _ready: deque[Any]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._asked = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """To its end; then the loop is closed, and whatever still runs is cancelled."""
        try:
            return self.run_until_complete(work)
        finally:
            rest = asyncio.all_tasks(self)
            for task in sorted(rest, key=lambda task: task.get_name()):
                task.cancel()
            if rest:
                self.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            self.close()

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Timers of one moment fire in the order of asking."""
        self._asked += 1
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, self._asked, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is skipped when its time has come."""

    def _run_once(self) -> None:
        """All that is ready; where nothing is, the next timers."""
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise Stalled("nothing is ready and no timer is set")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """At once."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the future carries it
            future.set_exception(error)
        return future

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


class VirtualClock:
    """Is a `Clock`, of a loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ns(self) -> int:
        return round(self._loop.time() * 1e9)

    def wall_s(self) -> float:
        return 1.7e9 + self._loop.time()
