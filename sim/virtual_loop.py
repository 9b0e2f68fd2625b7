"""An asyncio event loop in virtual time: where nothing is ready, the clock jumps to the next timer.

No sockets and no threads: work for executors runs at once, in place. Tasks run in the order in
which they became ready, timers by time and then by order of asking, so that a run depends on
nothing but its code and its seed.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Stalled(RuntimeError):
    """Nothing is ready and no timer is set, yet somebody waits."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Run code on it with `run`."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._asked = 0
        self._clock_resolution = 1e-9
        self._selector = _Jump(self)

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
        """Timers of one moment fire in the order of asking, as the heap alone does not promise."""
        self._asked += 1
        timer = _Timer(when, self._asked, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

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

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _jump(self, seconds: float) -> None:
        self._now += seconds


class _Timer(asyncio.TimerHandle):
    """Ordered by time, then by number."""

    def __init__(
        self,
        when: float,
        number: int,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._number = number

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, _Timer):
            return NotImplemented
        return (self._when, self._number) < (other._when, other._number)  # type: ignore[attr-defined]


class _Jump:
    """In the place of a selector: waiting is a jump of the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise Stalled("nothing is ready and no timer is set")
        if timeout > 0:
            self._loop._jump(timeout)
        return []

    def close(self) -> None:
        """Nothing is open."""


class VirtualClock:
    """Is a `Clock`, of a loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ns(self) -> int:
        return round(self._loop.time() * 1e9)

    def wall_s(self) -> float:
        return 1.7e9 + self._loop.time()
