"""An event loop whose clock jumps: nothing waits in real time, and order is kept."""

from __future__ import annotations

import asyncio

import pytest

from sim.virtual_loop import Stalled, VirtualClock, VirtualLoop


def test_a_day_passes_at_once_and_on_time() -> None:
    loop = VirtualLoop()
    clock = VirtualClock(loop)

    async def work() -> list[int]:
        seen = []
        for _ in range(24):
            await asyncio.sleep(3600)
            seen.append(clock.now_ns())
        return seen

    assert loop.run(work()) == [(i + 1) * 3600 * 10**9 for i in range(24)]


def test_timers_of_one_moment_fire_in_the_order_of_asking() -> None:
    loop = VirtualLoop()
    order: list[int] = []

    async def work() -> None:
        now = loop.time()
        for i in range(50):
            loop.call_at(now + 1.0, order.append, i)
        for i in range(50, 100):
            loop.call_at(now + 0.5, order.append, i)
        await asyncio.sleep(2.0)

    loop.run(work())
    assert order == [*range(50, 100), *range(50)]


def test_a_cancelled_timer_does_not_fire_and_a_timeout_does() -> None:
    loop = VirtualLoop()
    fired: list[str] = []

    async def work() -> None:
        loop.call_later(1.0, fired.append, "cancelled").cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.Event().wait()

    loop.run(work())
    assert not fired
    assert loop.time() == 5.0


def test_work_for_threads_runs_in_place() -> None:
    loop = VirtualLoop()

    async def work() -> int:
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        return await loop.run_in_executor(None, lambda: 42)

    assert loop.run(work()) == 42


def test_waiting_for_what_never_comes_is_found_out() -> None:
    loop = VirtualLoop()
    with pytest.raises(Stalled):
        loop.run(_forever())


async def _forever() -> None:
    await asyncio.Event().wait()


def test_a_callback_that_fails_ends_the_run() -> None:
    loop = VirtualLoop()

    def fail() -> None:
        raise AssertionError("a promise is broken")

    def fail_too() -> None:
        raise AssertionError("what follows from it")

    async def work() -> None:
        loop.call_later(1.0, fail)
        loop.call_later(1.5, fail_too)
        await asyncio.sleep(2.0)

    with pytest.raises(AssertionError, match="a promise is broken"):
        loop.run(work())
    assert loop.time() == 1.0
