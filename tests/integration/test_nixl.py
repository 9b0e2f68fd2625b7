"""KV written by NIXL into another process's memory, over TCP and over shared memory."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from eastwest.clock import SystemClock, ns
from eastwest.errors import ErrorCode, TransferFailed
from eastwest.messages import Ticket, Transport
from eastwest.paged_kv import pool_bytes
from kv_transfer.nixl_agent import nixl_available
from kv_transfer.nixl_delivery import QUARANTINE_S, Nixl, NixlPool
from tests.integration.one_sided import (
    BLOCK_TOKENS,
    NUM_BLOCKS,
    SHARD,
    SPEC,
    Child,
    a_sending_process,
    a_ticket,
    check_arrived,
    overwrite,
)

pytestmark = pytest.mark.skipif(not nixl_available(), reason="NIXL is not installed")

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


@pytest.mark.parametrize("memory", ["", "shm1:1:2:3:00", "nixl1:0:0:0:!!", "nixl1:0:4096:0:AAAA"])
def test_what_describes_no_agent_is_refused(memory: str) -> None:
    provider = Nixl(SystemClock())
    ticket = a_ticket(memory, Transport.NIXL)
    with pytest.raises(TransferFailed):
        provider.deliver(ticket, ticket.endpoints[0])
    provider.close()
