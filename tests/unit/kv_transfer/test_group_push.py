"""The leader's side of a push: whatever a rank does, the others do not go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import grpc.aio
import pytest

from eastwest.clock import SystemClock, ns
from eastwest.errors import DeadlineExceeded, EastWestError, TransferFailed, Unavailable
from eastwest.layout import ParallelLayout
from eastwest.messages import Ticket
from eastwest.types import SampledToken
from kv_transfer.group_push import ATTEMPTS_MAX, GroupPush, GroupSender
from kv_transfer.ranks import Missing, PushStats
from kv_transfer.service import KvTransferService
from tests.unit.kv_transfer.builders import SPEC, TOKEN, Receiving

TICKET = Ticket(
    transfer_id="t",
    worker_id="d0",
    epoch=1,
    address="127.0.0.1:1",
    endpoints=(),
    layout=ParallelLayout(),
    kv=SPEC,
    fingerprint="",
    block_tokens=2,
    first_block=0,
    num_blocks=2,
    num_tokens=4,
    lease_s=1.0,
)


@dataclass
class ManualRank:
    """A `SendingRank` whose draining never ends, or fails with `error`."""

    error: EastWestError | None = None
    stop_error: EastWestError | None = None
    begun: list[Sequence[int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    drained: int = 0
    stopped: int = 0

    def begin(self, ticket: Ticket, blocks: Sequence[int], timeout_s: float) -> None:
        self.begun.append(blocks)

    def ready(self, transfer_id: str, tokens: int) -> None:
        self.tokens.append(tokens)

    async def drain(self, transfer_id: str) -> PushStats:
        if self.error is not None:
            raise self.error
        try:
            await asyncio.Event().wait()
        finally:
            self.drained += 1
        raise AssertionError("an event that nobody sets")

    async def resend(self, transfer_id: str, missing: Sequence[Missing]) -> PushStats:
        raise AssertionError("nothing was missing")

    async def stop(self, transfer_id: str) -> None:
        self.stopped += 1
        if self.stop_error is not None:
            raise self.stop_error


def a_push(ranks: Sequence[ManualRank], timeout_s: float = 30.0) -> GroupPush:
    """From the second of two groups of two ranks."""
    clock = SystemClock()
    sender = GroupSender(ranks, ParallelLayout(tp=2, dp=2), clock, blocks_per_group=8)
    return sender.begin(TICKET, (9, 15), deadline_ns=clock.now_ns() + ns(timeout_s))


async def test_the_ranks_of_the_group_begin_with_blocks_of_their_own() -> None:
    ranks = [ManualRank() for _ in range(4)]
    a_push(ranks).ready(3)
    assert [rank.begun for rank in ranks] == [[], [], [[1, 7]], [[1, 7]]]
    assert [rank.tokens for rank in ranks] == [[], [], [3], [3]]


async def test_the_error_of_one_rank_ends_all_of_them() -> None:
    ranks = [ManualRank() for _ in range(4)]
    ranks[3].error = Unavailable("rank 3 is gone")
    with pytest.raises(Unavailable, match="rank 3"):
        await a_push(ranks).finish(TOKEN, finished=False)
    assert ranks[2].drained == 1
    assert [rank.stopped for rank in ranks] == [0, 0, 1, 1]


async def test_a_rank_that_cannot_be_stopped_hides_no_error() -> None:
    ranks = [ManualRank() for _ in range(4)]
    ranks[2].error = TransferFailed("the first cause")
    ranks[3].stop_error = Unavailable("rank 3 is gone")
    push = a_push(ranks)
    with pytest.raises(TransferFailed, match="the first cause"):
        await push.finish(TOKEN, finished=False)
    await push.stop()


class DrainedRank(ManualRank):
    """One that has sent everything at once."""

    async def drain(self, transfer_id: str) -> PushStats:
        return PushStats(0, 0, 0)


@dataclass
class SilentCommits:
    """`Commits` that answers all but the first so many, which it lets wait for ever."""

    silent: int
    asked: int = 0

    async def commit(
        self, transfer_id: str, epoch: int, first_token: SampledToken, *, finished: bool
    ) -> Sequence[Missing]:
        self.asked += 1
        if self.asked <= self.silent:
            await asyncio.Event().wait()
        return []

    async def abort(self, transfer_id: str, epoch: int, reason: str) -> None:
        raise AssertionError("nobody gives up")


@pytest.mark.parametrize("silent", [1, ATTEMPTS_MAX])
async def test_a_commit_that_is_not_answered_is_asked_for_again(silent: int) -> None:
    clock, commits = SystemClock(), SilentCommits(silent)
    server = grpc.aio.server()
    KvTransferService(Receiving().receiver, commits, clock, idle_s=30.0).add_to(server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    sender = GroupSender([DrainedRank()], ParallelLayout(), clock, blocks_per_group=8, idle_s=0.1)
    ticket = replace(TICKET, address=address)
    push = sender.begin(ticket, (1, 2), deadline_ns=clock.now_ns() + ns(60.0))
    if silent < ATTEMPTS_MAX:
        await push.finish(TOKEN, finished=False)
        assert commits.asked == silent + 1
    else:
        with pytest.raises(TransferFailed, match="did not answer"):
            await push.finish(TOKEN, finished=False)
    await sender.close()
    await server.stop(None)


async def test_the_deadline_ends_ranks_that_do_not_end() -> None:
    ranks = [ManualRank() for _ in range(4)]
    with pytest.raises(DeadlineExceeded):
        await a_push(ranks, timeout_s=0.01).finish(TOKEN, finished=False)
    assert [rank.drained for rank in ranks[2:]] == [1, 1]
    assert [rank.stopped for rank in ranks[2:]] == [1, 1]


def test_blocks_of_two_groups_are_a_programmer_error() -> None:
    sender = GroupSender(
        [ManualRank() for _ in range(4)],
        ParallelLayout(tp=2, dp=2),
        SystemClock(),
        blocks_per_group=8,
    )
    with pytest.raises(AssertionError, match="outside group 0"):
        sender.begin(TICKET, (7, 8), deadline_ns=0)
