"""An asyncio event loop in virtual time: where nothing is ready, the clock jumps to the next timer.

No sockets and no threads: work for executors runs at once, in place. Tasks run in the order in
which they became ready, timers by time and then by order of asking, so that a run depends on
nothing but its code and its seed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context
from heapq import heappop, heappush
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Stalled(RuntimeError):
    """Nothing is ready and no timer is set, yet somebody waits."""


class Call(list[Any]):
    """A callback that waits for its turn: `[when, number, callback, args, context]`, which sorts by
    time and then by order of asking. Stands where asyncio has its handles."""

    __slots__ = ()

    def cancel(self) -> None:
        """It is passed over when its turn comes. Idempotent."""
        self[2] = None

    def cancelled(self) -> bool:
        return self[2] is None

    def when(self) -> float:
        """Virtual seconds."""
        return cast(float, self[0])


class VirtualLoop(asyncio.BaseEventLoop):
    """Run code on it with `run`.

    A callback that raises ends the run. Callbacks run in the context that they are given, as those
    of tasks are, or else in the loop's own.
    """

    # What the base class keeps, and does not declare.
    _stopping: bool
    get_debug = staticmethod(bool)  # False. Every future asks, so it is a call that costs little.

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.now_ns = 0
        self._asked = 0
        self._timers: list[Call] = []
        self._soon: deque[Call] = deque()

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now_s

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """To its end; then the loop is closed, and whatever still runs is cancelled."""
        try:
            result = self.run_until_complete(work)
        except BaseException:
            # What follows from the failure must not hide it.
            self._timers.clear()
            with suppress(Exception):
                self._cancel_all()
            raise
        else:
            self._cancel_all()
            return result
        finally:
            self.close()

    def _cancel_all(self) -> None:
        rest = asyncio.all_tasks(self)
        for task in sorted(rest, key=lambda task: task.get_name()):
            task.cancel()
        if rest:
            self.run_until_complete(asyncio.gather(*rest, return_exceptions=True))

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        call = Call((self.now_s, 0, callback, args, context))
        self._soon.append(call)
        return call

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Call:
        """See `call_at`."""
        self._asked = asked = self._asked + 1
        call = Call((self.now_s + delay, asked, callback, args, context))
        heappush(self._timers, call)
        return call

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Call:
        """Timers of one moment fire in the order of asking."""
        self._asked = asked = self._asked + 1
        call = Call((when, asked, callback, args, context))
        heappush(self._timers, call)
        return call

    def after(self, delay: float) -> asyncio.Future[None]:
        """Done in so many virtual seconds."""
        future = asyncio.Future[None](loop=self)
        self.call_later(delay, _end_wait, future)
        return future

    def _run_once(self) -> None:
        """Until the loop is stopped: all that is ready; where nothing is, the next timers."""
        soon, timers = self._soon, self._timers
        now = self.now_s
        while not self._stopping:
            if not soon:
                if not timers:
                    raise Stalled("nothing is ready and no timer is set")
                call = heappop(timers)
                when, _, callback, args, context = call
                if callback is None:
                    continue
                if when > now:
                    self.now_s = now = when
                    self.now_ns = round(when * 1e9)
                if context is None and (not timers or timers[0][0] > now):
                    callback(*args)
                    continue
                soon.append(call)
            while timers and timers[0][0] <= now:
                soon.append(heappop(timers))
            for _ in range(len(soon)):
                _, _, callback, args, context = soon.popleft()
                if callback is None:
                    continue
                if context is None:
                    callback(*args)
                else:
                    context.run(callback, *args)

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


def _end_wait(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def running_loop() -> VirtualLoop:
    """The one that this code runs on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop), "the simulator runs in virtual time only"
    return loop


class VirtualClock:
    """Is a `Clock`, of a loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ns(self) -> int:
        return self._loop.now_ns

    def wall_s(self) -> float:
        return 1.7e9 + self._loop.now_s
