"""KV written by NIXL into another process's memory, over TCP and over shared memory."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import pytest

from eastwest.clock import SystemClock, ns
from eastwest.errors import ErrorCode, TransferFailed
from eastwest.messages import Ticket, Transport
from eastwest.paged_kv import pool_bytes
from kv_transfer.frame_codec import Header, Message
from kv_transfer.nixl_agent import nixl_problem
from kv_transfer.nixl_delivery import Nixl, NixlDelivery
from kv_transfer.nixl_pool import QUARANTINE_S, NixlPool
from kv_transfer.outgoing import PushedKV
from tests.integration.one_sided import (
    BLOCK_TOKENS,
    NUM_BLOCKS,
    OURS,
    REGION,
    SHARD,
    SPEC,
    Child,
    a_sending_process,
    a_source,
    a_ticket,
    check_arrived,
    overwrite,
)

pytestmark = pytest.mark.skipif(bool(nixl_problem()), reason=nixl_problem())

SILENCE_S = 30.0


class MovableClock(SystemClock):
    ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns


class Target:
    """A receiving rank's memory, as a target of NIXL."""

    def __init__(self) -> None:
        size = pool_bytes(SPEC, SHARD, NUM_BLOCKS, BLOCK_TOKENS)
        self.buffer = memoryview(bytearray(size))
        self.clock = MovableClock()
        self.fence = NixlPool(self.buffer, self.clock, silence_s=SILENCE_S)

    def ticket(self, transfer_id: str = "t1") -> Ticket:
        return a_ticket(self.fence.descriptor, Transport.NIXL, transfer_id)

    def close_in_the_end(self, transfer_id: str) -> None:
        """What is under way arrives soon, without a time that could be waited for."""
        for _ in range(1_000_000):
            if self.fence.close(transfer_id):
                return
        raise AssertionError("the fence does not close")


@pytest.fixture(params=["tcp,self", "posix,sysv,cma,self,tcp"], ids=["tcp", "shared memory"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setenv("UCX_TLS", request.param)
    target = Target()
    yield target
    target.fence.shut()


@pytest.fixture
def child(target: Target) -> Iterator[Child]:
    with a_sending_process() as process:
        yield process


def test_kv_arrives_in_the_reserved_blocks_and_nowhere_else(target: Target, child: Child) -> None:
    for number in range(3):
        transfer_id = f"t{number}"
        target.buffer[:] = bytes(len(target.buffer))
        target.fence.open(transfer_id)
        child.send(target.ticket(transfer_id))
        check_arrived(child.answer(), transfer_id, target.buffer)
        child.close(target.ticket(transfer_id))
        target.close_in_the_end(transfer_id)


def test_a_sender_that_is_late_writes_nothing(target: Target, child: Child) -> None:
    target.fence.open("t1")
    child.send(target.ticket())
    child.answer()
    target.fence.close("t1")
    before = overwrite(target.buffer)
    child.send(target.ticket())
    assert child.answer() is ErrorCode.LEASE_EXPIRED
    child.send(target.ticket("never opened"))
    assert child.answer() is ErrorCode.LEASE_EXPIRED
    assert bytes(target.buffer) == before


def test_blocks_are_held_until_a_sender_that_began_has_ended(target: Target, child: Child) -> None:
    target.fence.open("t1")
    child.send(target.ticket())
    child.answer()
    assert not target.fence.close("t1")
    target.clock.ahead_ns = ns(2 * QUARANTINE_S)
    assert not target.fence.close("t1")
    child.close(target.ticket())
    target.close_in_the_end("t1")


def test_a_sender_that_has_settled_is_not_waited_for(target: Target, child: Child) -> None:
    target.fence.open("t1")
    child.send(target.ticket())
    child.answer()
    child.settle(target.ticket())
    target.close_in_the_end("t1")
    before = overwrite(target.buffer)
    child.send(target.ticket())
    assert child.answer() is ErrorCode.LEASE_EXPIRED
    assert bytes(target.buffer) == before


def test_a_sender_that_goes_on_after_it_settled_is_waited_for(target: Target, child: Child) -> None:
    target.fence.open("t1")
    for _ in range(2):
        child.send(target.ticket())
        check_arrived(child.answer(), "t1", target.buffer)
        child.settle(target.ticket())
    child.send(target.ticket())
    child.answer()
    target.clock.ahead_ns = ns(2 * QUARANTINE_S)
    assert not target.fence.close("t1")
    child.settle(target.ticket())
    target.close_in_the_end("t1")


def test_a_sender_that_is_gone_holds_blocks_for_a_lease_and_no_longer(
    target: Target, child: Child
) -> None:
    target.fence.open("t1")
    child.send(target.ticket())
    child.answer()
    child.signal(signal.SIGKILL)
    target.clock.ahead_ns = 0
    assert not target.fence.close("t1")
    target.clock.ahead_ns = ns(SILENCE_S)
    assert target.fence.close("t1")


def test_blocks_that_nobody_began_to_fill_are_free_soon(target: Target) -> None:
    target.fence.open("t1")
    assert not target.fence.close("t1")
    target.clock.ahead_ns = ns(QUARANTINE_S)
    assert target.fence.close("t1")
    assert target.fence.close("t1")


@contextmanager
def a_receiving_process() -> Iterator[tuple[int, str]]:
    """A process with a transfer "t1" open: its number, and how its memory is found."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receive, args=(theirs,), daemon=True)
    process.start()
    assert process.pid is not None
    yield process.pid, ours.recv()
    process.kill()
    process.join()
    ours.close()


def _receive(connection: Connection) -> None:
    target = Target()
    target.fence.open("t1")
    connection.send(target.fence.descriptor)
    signal.pause()


def pack(provider: Nixl, ticket: Ticket) -> tuple[NixlDelivery, asyncio.Task[Message]]:
    delivery = provider.deliver(ticket, ticket.endpoints[0])
    outgoing = PushedKV(a_source(), OURS, ticket)
    header = Header(ticket.transfer_id, ticket.epoch, 0, REGION)
    return delivery, asyncio.create_task(delivery.pack(header, outgoing))


async def test_a_receiver_that_stands_still_does_not_hold_up_a_sender_that_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Over shared memory NIXL writes whether the other process runs or not.
    monkeypatch.setenv("UCX_TLS", "tcp,self")
    provider = Nixl(SystemClock())
    with a_receiving_process() as (pid, descriptor):
        ticket = a_ticket(descriptor, Transport.NIXL)
        delivery, packing = pack(provider, ticket)
        await packing
        os.kill(pid, signal.SIGSTOP)
        packing = asyncio.create_task(
            delivery.pack(Header("t1", 1, 0, REGION), PushedKV(a_source(), OURS, ticket))
        )
        for _ in range(10):
            await asyncio.sleep(0)
        assert not packing.done()
        packing.cancel()
        await asyncio.wait([packing])
        await delivery.close()
    provider.close()


async def test_a_receiver_that_is_gone_fails_its_transfers_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp,self")
    provider = Nixl(SystemClock())
    with a_receiving_process() as (_, descriptor), a_receiving_process() as (pid, other):
        gone, kept = (a_ticket(memory, Transport.NIXL) for memory in (other, descriptor))
        for ticket in (gone, kept):
            delivery, packing = pack(provider, ticket)
            await packing
            await delivery.close()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pid, 0)
        for ticket, fails in ((gone, True), (kept, False), (gone, True), (kept, False)):
            delivery, packing = pack(provider, ticket)
            await asyncio.wait([packing])
            assert bool(packing.exception()) == fails
            assert not fails or isinstance(packing.exception(), TransferFailed)
            await delivery.close()
    provider.close()


@pytest.mark.parametrize("memory", ["", "shm1:1:2:3:00", "nixl1:0:0:0:!!", "nixl1:0:4096:0:AAAA"])
def test_what_describes_no_agent_is_refused(memory: str) -> None:
    provider = Nixl(SystemClock())
    ticket = a_ticket(memory, Transport.NIXL)
    with pytest.raises(TransferFailed):
        provider.deliver(ticket, ticket.endpoints[0])
    provider.close()
