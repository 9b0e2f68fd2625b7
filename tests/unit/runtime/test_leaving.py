"""How a worker leaves, step by step, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from eastwest.errors import Draining, ErrorCode, Phase
from eastwest.messages import (
    Abort,
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
from eastwest.testing.builders import a_load, a_ticket, a_worker
from eastwest.types import SamplingParams
from runtime.leaving import CHECK_S, GRACE_S, LeaveState, Leaving
from sim.virtual_loop import VirtualClock, VirtualLoop

INFO = a_worker()
PARAMS = SamplingParams(temperature=0.0)
RESERVE = Reserve("r1", "", "", (1,), PARAMS, 1, INFO.source(), 9.0)
PREFILL = Prefill("r2", "", (1,), PARAMS, 1, a_ticket(INFO), 9.0)


class Side:
    """A phase that is busy until it is told otherwise."""

    def __init__(self) -> None:
        self.idle = True
        self.given_back: list[float] = []

    def give_back(self, error: Draining) -> None:
        self.given_back.append(asyncio.get_running_loop().time())
        self.idle = True


class Sessions:
    """Of three that rest, the store takes two, in a second."""

    def __init__(self) -> None:
        self.spilled_sessions = 7
        self.hastened: list[bool] = []

    def hasten(self, *, hasten: bool) -> None:
        self.hastened.append(hasten)

    async def empty(self) -> int:
        await asyncio.sleep(1.0)
        self.spilled_sessions += 2
        return 1


class Worker:
    """What leaves, and what its routers heard."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.side, self.sessions = Side(), Sessions()
        self.routers = {"a", "b"}
        self.heard: list[tuple[str, Event]] = []
        self.leaving = Leaving(
            sides=(Side(), self.side),
            sessions=self.sessions,
            load=self._load,
            routers=lambda: sorted(self.routers),
            emit=lambda router_id, event: self.heard.append((router_id, event)),
            clock=VirtualClock(loop),
        )
        self.running = loop.create_task(self.leaving.run(), name="leaving")

    def _load(self) -> Load:
        return a_load()

    def is_in(self, state: LeaveState) -> bool:
        return self.leaving.state is state

    def drained(self) -> list[tuple[str, Drained]]:
        return [(r, e) for r, e in self.heard if isinstance(e, Drained)]


def in_virtual_time(test: Callable[[Worker], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run a test on a virtual loop."""

    def run() -> None:
        loop = VirtualLoop()

        async def work() -> None:
            await test(Worker(loop))

        loop.run(work())

    run.__name__ = test.__name__
    return run


@in_virtual_time
async def test_what_runs_ends_then_sessions_are_stored_then_routers_let_go(w: Worker) -> None:
    w.side.idle = False
    assert w.leaving.handle("a", Drain(60.0))
    assert w.leaving.left_s == pytest.approx(60.0)
    assert {r for r, e in w.heard if isinstance(e, Load)} == {"a", "b"}
    assert w.sessions.hastened == [True]
    await asyncio.sleep(20.0)
    assert w.is_in(LeaveState.DRAINING)
    assert w.leaving.left_s == pytest.approx(40.0)
    w.side.idle = True
    await asyncio.sleep(2 * CHECK_S)
    assert w.is_in(LeaveState.SETTLING)
    await asyncio.sleep(1.0)
    assert w.drained() == [("a", Drained(2, 1)), ("b", Drained(2, 1))]
    w.leaving.handle("a", Dismiss())
    await asyncio.sleep(1.0)
    assert not w.leaving.left.is_set()
    w.leaving.handle("b", Dismiss())
    await w.running
    assert w.leaving.left.is_set()
    assert not w.side.given_back


@in_virtual_time
async def test_what_is_taken_depends_on_how_far_it_is(w: Worker) -> None:
    assert not any(w.leaving.handle("a", c) for c in (RESERVE, PREFILL, Abort("r1")))
    w.side.idle = False
    w.leaving.begin(60.0)
    assert w.leaving.handle("a", RESERVE)
    assert not w.leaving.handle("a", PREFILL)
    assert not w.leaving.handle("a", Abort("r1"))
    w.side.idle = True
    await asyncio.sleep(2 * CHECK_S)
    assert w.leaving.handle("a", RESERVE)
    assert w.leaving.handle("b", PREFILL)
    failed = [(r, e) for r, e in w.heard if isinstance(e, Failed)]
    assert [(r, e.request_id, e.code, e.phase) for r, e in failed] == [
        ("a", "r1", ErrorCode.DRAINING, Phase.RESERVATION),
        ("a", "r1", ErrorCode.DRAINING, Phase.RESERVATION),
        ("b", "r2", ErrorCode.DRAINING, Phase.QUEUE),
    ]


@in_virtual_time
async def test_the_soonest_deadline_counts_and_work_left_behind_it_is_given_back(
    w: Worker,
) -> None:
    w.side.idle = False
    for timeout_s in (60.0, 10.0, 600.0):
        w.leaving.handle("a", Drain(timeout_s))
    assert w.leaving.left_s == pytest.approx(10.0)
    await asyncio.sleep(10.0 + GRACE_S + 2 * CHECK_S)
    assert w.side.given_back == [pytest.approx(10.0 + GRACE_S, abs=2 * CHECK_S)]
    await asyncio.sleep(1.0)
    assert w.is_in(LeaveState.DRAINED)
    assert w.leaving.left_s == 0.0


@in_virtual_time
async def test_a_router_that_is_silent_or_gone_is_not_waited_for_long(w: Worker) -> None:
    w.leaving.begin(0.0)
    await asyncio.sleep(1.0 + 2 * CHECK_S)
    w.leaving.handle("a", Dismiss())
    await asyncio.sleep(GRACE_S / 2)
    assert not w.leaving.left.is_set()
    await asyncio.sleep(GRACE_S / 2)
    assert w.leaving.left.is_set()


@in_virtual_time
async def test_a_router_whose_stream_has_ended_is_not_waited_for(w: Worker) -> None:
    w.leaving.begin(0.0)
    await asyncio.sleep(1.0 + 2 * CHECK_S)
    w.routers.clear()
    await asyncio.sleep(2 * CHECK_S)
    assert w.leaving.left.is_set()


@pytest.mark.parametrize("idle", [False, True])
def test_it_may_stay_until_it_has_drained(idle: bool) -> None:
    @in_virtual_time
    async def test(w: Worker) -> None:
        w.side.idle = idle
        w.leaving.begin(60.0)
        await asyncio.sleep(0.5)
        w.leaving.handle("b", Undrain())
        assert w.leaving.left_s is None
        assert w.sessions.hastened == [True, False]
        await asyncio.sleep(100.0)
        assert not w.drained()
        assert not w.leaving.handle("a", RESERVE)
        w.side.idle = True
        w.leaving.begin(0.0)
        await asyncio.sleep(1.0 + 2 * CHECK_S)
        assert w.drained()
        w.leaving.handle("a", Undrain())
        assert w.is_in(LeaveState.DRAINED)

    test()


@in_virtual_time
async def test_staying_and_leaving_again_while_sessions_are_stored(w: Worker) -> None:
    w.leaving.begin(60.0)
    await asyncio.sleep(0.5)
    assert w.is_in(LeaveState.SETTLING)
    w.leaving.cancel()
    w.side.idle = False
    w.leaving.begin(60.0)
    await asyncio.sleep(5.0)
    assert not w.drained()
    w.side.idle = True
    await asyncio.sleep(1.0 + 2 * CHECK_S)
    # Counted from the latest beginning.
    assert w.drained() == [("a", Drained(4, 1)), ("b", Drained(4, 1))]
