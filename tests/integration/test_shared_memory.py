"""KV written into another process's memory, and senders that outlive their lease."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from eastwest.errors import EastWestError, ErrorCode, TransferFailed
from eastwest.messages import Ticket, Transport
from eastwest.paged_kv import pool_bytes
from kv_transfer.fence import TRANSFERS_MAX
from kv_transfer.host_identity import host_identity
from kv_transfer.shared_memory import SharedMemory, SharedPool
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

pytestmark = pytest.mark.skipif(not host_identity(), reason="this host shares no memory")


@pytest.fixture
def pool() -> Iterator[SharedPool]:
    pool = SharedPool(pool_bytes(SPEC, SHARD, NUM_BLOCKS, BLOCK_TOKENS))
    yield pool
    pool.shut()


@pytest.fixture
def child() -> Iterator[Child]:
    with a_sending_process() as process:
        yield process


def ticket_for(pool: SharedPool, transfer_id: str = "t1") -> Ticket:
    return a_ticket(pool.descriptor, Transport.SHARED_MEMORY, transfer_id)


def test_kv_arrives_in_the_reserved_blocks_and_nowhere_else(pool: SharedPool, child: Child) -> None:
    pool.fence.open("t1")
    child.send(ticket_for(pool))
    check_arrived(child.answer(), "t1", pool.buffer)
    assert pool.fence.close("t1")


def test_a_sender_that_is_merely_late_writes_nothing(pool: SharedPool, child: Child) -> None:
    pool.fence.open("t1")
    child.send(ticket_for(pool))
    child.answer()
    assert pool.fence.close("t1")
    before = overwrite(pool.buffer)
    child.send(ticket_for(pool))
    assert child.answer() is ErrorCode.LEASE_EXPIRED
    child.send(ticket_for(pool, "never opened"))
    assert child.answer() is ErrorCode.LEASE_EXPIRED
    assert bytes(pool.buffer) == before


def test_blocks_stay_closed_while_a_stopped_sender_may_still_write(
    pool: SharedPool, child: Child
) -> None:
    pool.fence.open("t1")
    pool.fence.open("t2")
    child.send(ticket_for(pool), stopping=True)
    child.wait_until_stopped()
    assert not pool.fence.close("t1")
    assert not pool.fence.close("t1")
    assert pool.fence.close("t2"), "others do not wait for it"
    child.signal(signal.SIGCONT)
    assert child.answer() is ErrorCode.LEASE_EXPIRED
    assert pool.fence.close("t1")
    before = overwrite(pool.buffer)
    child.send(ticket_for(pool))
    assert child.answer() is ErrorCode.LEASE_EXPIRED
    assert bytes(pool.buffer) == before


def test_a_sender_that_dies_in_the_middle_lets_go(pool: SharedPool, child: Child) -> None:
    pool.fence.open("t1")
    child.send(ticket_for(pool), stopping=True)
    child.wait_until_stopped()
    assert not pool.fence.close("t1")
    child.signal(signal.SIGKILL)
    os.waitpid(child.pid, 0)
    assert pool.fence.close("t1")


def test_a_closed_row_serves_another_transfer(pool: SharedPool, child: Child) -> None:
    for number in range(3):
        pool.fence.open(f"t{number}")
        child.send(ticket_for(pool, f"t{number}"))
        assert isinstance(child.answer(), bytes)
        assert pool.fence.close(f"t{number}")
        assert pool.fence.close(f"t{number}")
    child.send(ticket_for(pool, "t0"))
    assert child.answer() is ErrorCode.LEASE_EXPIRED


def test_more_transfers_than_rows_are_refused_until_one_is_closed(pool: SharedPool) -> None:
    for number in range(TRANSFERS_MAX):
        pool.fence.open(str(number))
    with pytest.raises(EastWestError) as caught:
        pool.fence.open("one more")
    assert caught.value.code is ErrorCode.OVERLOADED
    assert pool.fence.close("17")
    pool.fence.open("one more")


async def test_memory_is_unmapped_when_the_process_that_shared_it_ends() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(theirs,), daemon=True)
    process.start()
    descriptor = ours.recv()
    provider = SharedMemory()
    pool = SharedPool(pool_bytes(SPEC, SHARD, NUM_BLOCKS, BLOCK_TOKENS))
    ticket = a_ticket(descriptor, Transport.SHARED_MEMORY)
    before = mapped("eastwest")
    await provider.deliver(ticket, ticket.endpoints[0]).close()
    assert mapped("eastwest") == before + 2
    process.kill()
    process.join()
    ours.close()
    for _ in range(3):  # turns of the loop, which is told of the end
        await asyncio.sleep(0)
    assert mapped("eastwest") == before
    with pytest.raises(TransferFailed):
        provider.deliver(ticket, ticket.endpoints[0])
    pool.shut()


def _hold(connection: Connection) -> None:
    pool = SharedPool(pool_bytes(SPEC, SHARD, NUM_BLOCKS, BLOCK_TOKENS))
    connection.send(pool.descriptor)
    signal.pause()


def mapped(name: str) -> int:
    """Mappings of this process of files of that name."""
    return Path("/proc/self/maps").read_text(encoding="utf-8").count(f"/memfd:{name}")


def other_nonce(pool: SharedPool) -> str:
    return pool.descriptor[:-4] + "0000"


def other_file(pool: SharedPool) -> str:
    kind, pid, _, fence, nonce = pool.descriptor.split(":")
    return f"{kind}:{pid}:{fence}:{fence}:{nonce}"


def no_fence(pool: SharedPool) -> str:
    kind, pid, memory, _, nonce = pool.descriptor.split(":")
    return f"{kind}:{pid}:{memory}:{memory}:{nonce}"


def no_process(pool: SharedPool) -> str:
    kind, _, memory, fence, nonce = pool.descriptor.split(":")
    return f"{kind}:4194305:{memory}:{fence}:{nonce}"


@pytest.mark.parametrize(
    "forge",
    [other_nonce, other_file, no_fence, no_process, lambda _: "", lambda _: "/etc/passwd"],
    ids=["incarnation", "file", "fence", "process", "nothing", "path"],
)
async def test_memory_that_is_not_that_of_the_ticket_is_refused(
    pool: SharedPool, forge: object
) -> None:
    assert callable(forge)
    ticket = a_ticket(forge(pool), Transport.SHARED_MEMORY)
    files = set(os.listdir("/proc/self/fd"))
    provider = SharedMemory()
    with pytest.raises(TransferFailed):
        provider.deliver(ticket, ticket.endpoints[0])
    assert set(os.listdir("/proc/self/fd")) <= files
    provider.close()


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": (5, 2, NUM_BLOCKS)},
        {"blocks": (5, -1, 3)},
        {"blocks": (5, 2)},
        {"block_tokens": 3},
    ],
)
async def test_blocks_that_the_memory_does_not_hold_are_refused(
    pool: SharedPool, change: dict[str, object]
) -> None:
    ticket = replace(ticket_for(pool), **change)  # type: ignore[arg-type]
    provider = SharedMemory()
    with pytest.raises(TransferFailed):
        provider.deliver(ticket, ticket.endpoints[0])
    provider.close()


def test_processes_of_one_host_and_user_know_each_other() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        assert processes.apply(host_identity) == host_identity()
