"""A link to a simulated worker, without a router around it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from eastwest.messages import Abort, Event, Load, Reserve, WorkerInfo
from eastwest.testing.builders import a_worker
from eastwest.testing.gates import Changes
from eastwest.testing.worker_server import WorkerServer, WorkerServers
from eastwest.types import Role, SamplingParams
from router.control_stream import UNREAD_BYTES
from router.links import WorkerLink
from tests.integration.deployment import babbles, served_model


class Owner:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.told: list[str] = []
        self.loads = 0

    def worker_up(self, info: WorkerInfo) -> None:
        self._note(f"up {info.epoch}")

    def worker_down(self, worker_id: str, epoch: int, reason: str) -> None:
        self._note(f"down {epoch}: {reason}")

    def worker_events(self, worker_id: str, epoch: int, events: Sequence[Event]) -> None:
        assert all(isinstance(event, Load) for event in events)
        self.loads += len(events)
        self.changes.notify()

    def _note(self, what: str) -> None:
        self.told.append(what)
        self.changes.notify()

    async def was_told(self, count: int) -> list[str]:
        await self.changes.until(lambda: len(self.told) >= count)
        return self.told


async def a_worker_server() -> WorkerServer:
    return await WorkerServers(served_model(), babbles).start("d0", Role.DECODE)


def a_link(worker: WorkerServer, owner: Owner, queue_max: int = 100) -> WorkerLink:
    link = WorkerLink(
        "d0",
        worker.address,
        owner,
        router_id="router-1",
        rng=random.Random(1),
        queue_max=queue_max,
    )
    link.start()
    return link


async def test_commands_arrive_in_order_and_events_come_back() -> None:
    worker, owner = await a_worker_server(), Owner()
    link = a_link(worker, owner)
    await owner.was_told(1)
    for number in range(50):
        link.send(1, Abort(f"r{number}"))
    aborts = await worker.received(Abort, 50)
    assert [a.request_id for a in aborts] == [f"r{number}" for number in range(50)]
    await owner.changes.until(lambda: owner.loads > 0)
    await link.close()
    await worker.stop()


async def test_a_greeting_may_be_larger_than_what_a_worker_may_send_ahead() -> None:
    worker, owner = await a_worker_server(), Owner()
    worker.info = replace(worker.info, host="h" * (5 * UNREAD_BYTES))
    link = a_link(worker, owner)
    await owner.was_told(1)
    await link.close()
    assert owner.told[0] == "up 1"
    await worker.stop()


async def test_each_up_is_followed_by_one_down_and_closing_is_final() -> None:
    worker, owner = await a_worker_server(), Owner()
    link = a_link(worker, owner)
    await owner.was_told(1)
    worker.break_streams()
    await owner.was_told(3)
    await link.close()
    await link.close()
    assert owner.told == [
        "up 1",
        "down 1: the simulated stream is broken",
        "up 1",
        "down 1: the link to worker d0 is closed",
    ]
    await worker.stop()


@pytest.mark.parametrize("moments", range(6))
async def test_closing_is_final_while_the_stream_breaks(moments: int) -> None:
    worker, owner = await a_worker_server(), Owner()
    link = a_link(worker, owner)
    await owner.was_told(1)
    link.reset("broken")
    for _ in range(moments):
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await link.close()
    assert len(owner.told) == 2
    await worker.stop()


async def test_a_worker_that_does_not_read_is_cut_off_and_dialled_again() -> None:
    worker, owner = await a_worker_server(), Owner()
    link = a_link(worker, owner, queue_max=10)
    await owner.was_told(1)
    for number in range(11):
        link.send(1, Abort(f"r{number}"))
    assert (await owner.was_told(3))[1:] == [
        "down 1: worker d0 does not read: 10 commands wait",
        "up 1",
    ]
    source = a_worker("p0").source()
    link.send(1, Reserve("anew", "", "", (1,), SamplingParams(seed=1), 1, source, 10.0))
    [reserve] = await worker.received(Reserve)
    assert reserve.request_id == "anew"
    await link.close()
    await worker.stop()


async def test_a_command_for_a_former_incarnation_is_dropped() -> None:
    worker, owner = await a_worker_server(), Owner()
    link = a_link(worker, owner)
    await owner.was_told(1)
    link.send(0, Abort("stale"))
    link.send(1, Abort("fresh"))
    assert [a.request_id for a in await worker.received(Abort)] == ["fresh"]
    await link.close()
    link.send(1, Abort("after the end"))
    await worker.stop()


async def test_closing_before_the_worker_ever_answered_tells_nothing() -> None:
    worker, owner = await a_worker_server(), Owner()
    await worker.stop()
    link = a_link(worker, owner)
    await link.close()
    assert owner.told == []
