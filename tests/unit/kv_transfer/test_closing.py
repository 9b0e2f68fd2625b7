"""Closing a transfer that senders write to by themselves waits until none of them can be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from eastwest.errors import ErrorCode, InvalidArgument
from eastwest.messages import Transport
from kv_transfer.closing import FencedReceiver
from kv_transfer.receiver import Receiver
from tests.unit.kv_transfer.builders import EPOCH, Receiving, RecordingEvents, a_memory, an_opening


@dataclass
class ManualFence:
    """A `Fence` with writers inside until the test takes them out."""

    writing: set[str] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, transfer_id: str) -> None:
        self.opened.append(transfer_id)

    def close(self, transfer_id: str) -> bool:
        self.asked.append(transfer_id)
        return transfer_id not in self.writing


def a_rank(fence: ManualFence) -> FencedReceiver:
    receiver = Receiver(a_memory(), RecordingEvents(), rank=0, epoch=EPOCH)
    return FencedReceiver(receiver, dict.fromkeys(Transport, fence))


async def test_kv_that_comes_by_frames_needs_no_fence() -> None:
    fence = ManualFence()
    rank = a_rank(fence)
    rank.open(an_opening())
    assert await rank.missing("t1") == [Receiving.region]
    await rank.close("t1", ErrorCode.NOT_FOUND)
    assert (fence.opened, fence.asked) == ([], [])


async def test_where_nothing_is_to_come_nobody_is_waited_for() -> None:
    fence = ManualFence(writing={"t1"})
    rank = a_rank(fence)
    rank.open(an_opening(first_block=3, transport=Transport.NIXL))
    await rank.close("t1", None)
    assert (fence.opened, fence.asked) == ([], [])


async def test_each_transport_has_a_fence_of_its_own() -> None:
    shared, nixl = ManualFence(writing={"t1"}), ManualFence(writing={"t2"})
    receiver = Receiver(a_memory(), RecordingEvents(), rank=0, epoch=EPOCH)
    rank = FencedReceiver(receiver, {Transport.SHARED_MEMORY: shared, Transport.NIXL: nixl})
    rank.open(an_opening("t1", transport=Transport.SHARED_MEMORY))
    rank.open(an_opening("t2", transport=Transport.NIXL))
    assert (shared.opened, nixl.opened) == (["t1"], ["t2"])
    closings = [rank.close(transfer_id, None) for transfer_id in ("t1", "t2")]
    shared.writing.clear()
    rank.tick()
    assert [closing.done.is_set() for closing in closings] == [True, False]
    assert rank.waiting.is_set()
    nixl.writing.clear()
    rank.tick()
    await closings[1]
    assert not rank.waiting.is_set()


async def test_closing_waits_for_a_writer() -> None:
    fence = ManualFence(writing={"t1"})
    rank = a_rank(fence)
    rank.open(an_opening(transport=Transport.SHARED_MEMORY))
    assert fence.opened == ["t1"]
    closing = rank.close("t1", None)
    waiting = [asyncio.create_task(_wait(rank.close("t1", None))) for _ in range(2)]
    waiting[0].cancel()
    rank.tick()
    assert not closing.done.is_set()
    assert rank.waiting.is_set()
    fence.writing.clear()
    rank.tick()
    await closing
    await waiting[1]
    assert not rank.waiting.is_set()
    await rank.close("t1", None)
    assert len(fence.asked) == 3
    rank.tick()
    assert len(fence.asked) == 3


async def test_closing_is_there_at_once_where_nobody_writes() -> None:
    fence = ManualFence()
    rank = a_rank(fence)
    rank.open(an_opening(transport=Transport.NIXL))
    rank.tick()
    assert fence.asked == []
    await rank.close("t1", ErrorCode.CANCELLED)
    assert fence.asked == ["t1"]


async def test_closing_what_was_never_open_is_there_at_once() -> None:
    await a_rank(ManualFence()).close("t9", ErrorCode.NOT_FOUND)


async def _wait(closing: object) -> None:
    await closing  # type: ignore[misc]


async def test_kv_by_a_way_that_the_rank_does_not_have_is_refused() -> None:
    receiver = Receiver(a_memory(), RecordingEvents(), rank=0, epoch=EPOCH)
    rank = FencedReceiver(receiver, {Transport.SHARED_MEMORY: ManualFence()})
    with pytest.raises(InvalidArgument, match="by nixl; allowed: shared_memory"):
        rank.open(replace(an_opening(), transport=Transport.NIXL))
    assert not receiver.transfers_open


async def test_an_opening_that_is_refused_opens_no_fence() -> None:
    fence = ManualFence()
    with pytest.raises(InvalidArgument):
        a_rank(fence).open(replace(an_opening(), transport=Transport.NIXL, num_tokens=1))
    assert not fence.opened
