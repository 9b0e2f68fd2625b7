"""How a leader commits what its ranks have got: once, whole, under a lease, of this incarnation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest

from eastwest.errors import (
    Cancelled,
    EastWestError,
    ErrorCode,
    InternalError,
    LeaseExpired,
    NotFound,
    StaleEpoch,
    Unavailable,
)
from eastwest.layout import ParallelLayout
from eastwest.messages import KvLink, Transport
from kv_transfer import transfers as transfers_module
from kv_transfer.ledger import Ledger, Owner, OwnerKind
from kv_transfer.plan import Region
from kv_transfer.ranks import Arrived, Missing, Opening
from kv_transfer.transfers import Transfers, TransferStats
from tests.unit.kv_transfer.builders import EPOCH, TOKEN, TRANSFER, RecordingOwner

LAYOUT = ParallelLayout(tp=2, dp=2)
BLOCKS_PER_GROUP = 8
LEASE_NS = 1_000
OWNER = Owner(OwnerKind.RESERVATION, "r1")
HOLE = Region(range(1), range(1, 3), range(1))
# Replica-wide ids of group 1, whose ranks are 2 and 3; the sequence's first block is shared.
BLOCKS = (15, 9, 10)
STATS = Arrived(bytes=100, frames=2, transfer_ns=30, since_last_ns=0)


class ManualClock:
    now = 0

    def now_ns(self) -> int:
        return self.now

    def wall_s(self) -> float:
        return 0.0


class ManualClosing:
    """Awaitable while `done` is set, as it is at first; raises `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.done = asyncio.Event()
        self.done.set()
        self.error = error

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self.done.wait().__await__()
        if self.error is not None:
            raise self.error


@dataclass
class ManualRank:
    """A `ReceivingRank` that answers what the test says, when it says so.

    answers: what `missing` gives or raises, in turn; then nothing is missing.
    """

    answers: list[list[Region] | Exception] = field(default_factory=list)
    asked: int = 0
    gone: bool = False
    gate: asyncio.Event | None = None
    opened: list[Opening] = field(default_factory=list)
    closed: list[tuple[str, ErrorCode | None]] = field(default_factory=list)
    closing: ManualClosing = field(default_factory=ManualClosing)

    def open(self, opening: Opening) -> None:
        if self.gone:
            raise Unavailable("the rank is gone")
        self.opened.append(opening)

    def close(self, transfer_id: str, reason: ErrorCode | None) -> Awaitable[None]:
        self.closed.append((transfer_id, reason))
        return self.closing

    async def missing(self, transfer_id: str) -> list[Region]:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers.pop(0) if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer


class Rig:
    """A leader of four ranks, with one transfer open on the two of group 1."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger()
        self.owner = RecordingOwner()
        self.ranks = [ManualRank() for _ in range(4)]
        self.transfers = Transfers(
            self.ranks,
            LAYOUT,
            self.ledger,
            self.owner,
            self.clock,
            epoch=EPOCH,
            lease_ns=LEASE_NS,
            blocks_per_group=BLOCKS_PER_GROUP,
        )
        self.ledger.open(OWNER, BLOCKS, lease_until_ns=LEASE_NS)
        self.open(TRANSFER)

    def open(self, transfer_id: str, *, first_block: int = 1, source: str = "p0") -> None:
        self.transfers.open(
            transfer_id,
            OWNER,
            group=1,
            blocks=BLOCKS,
            first_block=first_block,
            num_blocks=3,
            num_tokens=5,
            transport=Transport.NIXL,
            source=source,
        )

    def arrive(self, *ranks: int, transfer_id: str = TRANSFER, stats: Arrived = STATS) -> None:
        for rank in ranks:
            self.transfers.on_arrived(rank, transfer_id, stats)

    async def commit(
        self, transfer_id: str = TRANSFER, *, epoch: int = EPOCH, finished: bool = False
    ) -> list[Missing]:
        return await self.transfers.commit(transfer_id, epoch, TOKEN, finished=finished)


async def test_the_ranks_of_the_group_open_with_blocks_of_their_own() -> None:
    rig = Rig()
    opening = Opening(TRANSFER, (7, 1, 2), 1, 3, 5, Transport.NIXL)
    assert [rank.opened for rank in rig.ranks] == [[], [], [opening], [opening]]
    rig.transfers.check_integrity()


async def test_a_rank_that_cannot_open_leaves_the_transfer_open_nowhere() -> None:
    rig = Rig()
    rig.ranks[3].gone = True
    with pytest.raises(Unavailable):
        rig.open("t2")
    assert not rig.transfers.is_open("t2")
    assert ("t2", ErrorCode.NOT_FOUND) in rig.ranks[2].closed


async def test_it_commits_once_all_ranks_have_got_their_share() -> None:
    rig = Rig()
    rig.clock.now = 40
    rig.arrive(2, stats=Arrived(100, 2, transfer_ns=30, since_last_ns=0))
    rig.clock.now = 60
    rig.arrive(3, stats=Arrived(50, 1, transfer_ns=20, since_last_ns=5))
    rig.clock.now = 65
    assert await rig.commit(finished=True) == []
    stats = TransferStats(150, 3, transfer_ns=30, import_ns=10)
    assert rig.owner.committed == [(TRANSFER, TOKEN, True, stats)]
    assert [rank.asked for rank in rig.ranks] == [0, 0, 0, 0]
    assert [rank.closed for rank in rig.ranks[2:]] == [[(TRANSFER, None)]] * 2
    assert rig.transfers.transfers_open == 0


async def test_a_repeated_commit_gets_the_same_answer_and_tells_nobody() -> None:
    rig = Rig()
    rig.arrive(2, 3)
    assert await rig.commit() == []
    rig.clock.now = 10 * LEASE_NS
    assert await rig.commit() == []
    assert len(rig.owner.committed) == 1


async def test_a_hole_on_one_rank_is_named_and_the_transfer_stays_open() -> None:
    rig = Rig()
    rig.arrive(2)
    rig.ranks[3].answers = [[HOLE]]
    assert await rig.commit() == [Missing(1, HOLE)]
    assert rig.owner.committed == []
    assert rig.transfers.is_open(TRANSFER)
    rig.arrive(3)
    assert await rig.commit() == []


async def test_commits_at_once_tell_the_owner_once() -> None:
    rig = Rig()
    rig.ranks[3].gate = asyncio.Event()
    commits = [asyncio.create_task(rig.commit()) for _ in range(3)]
    await asyncio.sleep(0)
    rig.arrive(2, 3)
    rig.ranks[3].gate.set()
    assert await asyncio.gather(*commits) == [[], [], []]
    assert len(rig.owner.committed) == 1


async def test_with_nothing_to_push_it_commits_without_a_frame() -> None:
    rig = Rig()
    rig.open("t2", first_block=3)
    rig.arrive(2, 3, transfer_id="t2", stats=Arrived(0, 0, 0, 0))
    rig.clock.now = 5
    assert await rig.commit("t2") == []
    assert rig.owner.committed == [("t2", TOKEN, False, TransferStats(0, 0, 0, 0))]


async def test_a_transfer_that_ends_while_a_commit_asks_is_not_committed() -> None:
    rig = Rig()
    rig.ranks[3].gate = asyncio.Event()
    committing = asyncio.create_task(rig.commit())
    await asyncio.sleep(0)
    rig.arrive(2, 3)
    rig.transfers.close(TRANSFER, ErrorCode.CANCELLED)
    rig.ranks[3].gate.set()
    with pytest.raises(Cancelled):
        await committing
    assert rig.owner.committed == []


@pytest.mark.parametrize(
    ("failure", "error"),
    [(Unavailable("rank 3 is gone"), Unavailable), (OSError("broken pipe"), InternalError)],
)
async def test_a_rank_that_cannot_answer_is_a_typed_error(
    failure: Exception, error: type[EastWestError]
) -> None:
    rig = Rig()
    rig.ranks[3].answers = [failure]
    with pytest.raises(error):
        await rig.commit()
    assert rig.transfers.is_open(TRANSFER)


async def test_a_rank_that_forgot_to_say_so_is_a_defect() -> None:
    rig = Rig()
    rig.arrive(2)
    with pytest.raises(InternalError, match=r"ranks \[3\] miss nothing"):
        await rig.commit()


@pytest.mark.parametrize("what", ["progress", "arrived"])
async def test_what_is_new_renews_the_lease(what: str) -> None:
    rig = Rig()
    rig.clock.now = LEASE_NS - 1
    if what == "progress":
        rig.transfers.on_progress(2, TRANSFER)
    else:
        rig.arrive(2)
    assert rig.ledger[OWNER].lease_until_ns == 2 * LEASE_NS - 1


async def test_a_lease_that_has_run_out_stays_so() -> None:
    rig = Rig()
    rig.clock.now = LEASE_NS
    rig.transfers.on_progress(2, TRANSFER)
    rig.arrive(2, 3)
    assert rig.ledger[OWNER].lease_until_ns == LEASE_NS
    with pytest.raises(LeaseExpired):
        await rig.commit()
    assert rig.owner.committed == []


async def test_news_of_a_transfer_that_has_ended_is_ignored() -> None:
    rig = Rig()
    rig.transfers.close(TRANSFER)
    rig.ledger.close(OWNER)
    rig.transfers.on_progress(2, TRANSFER)
    rig.arrive(2)
    with pytest.raises(NotFound):
        await rig.commit()


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
async def test_another_incarnation_is_refused(epoch: int) -> None:
    rig = Rig()
    rig.arrive(2, 3)
    with pytest.raises(StaleEpoch):
        await rig.commit(epoch=epoch)
    with pytest.raises(StaleEpoch):
        await rig.transfers.abort(TRANSFER, epoch, "gone")
    assert (rig.owner.committed, rig.owner.aborted) == ([], [])


async def test_an_unknown_transfer_is_not_found() -> None:
    rig = Rig()
    with pytest.raises(NotFound):
        await rig.commit("t9")
    await rig.transfers.abort("t9", EPOCH, "idempotent")
    await rig.transfers.close("t9")


async def test_an_abort_ends_the_transfer_on_all_ranks_and_tells_the_owner_once() -> None:
    rig = Rig()
    for _ in range(2):
        await rig.transfers.abort(TRANSFER, EPOCH, "no more")
    assert rig.owner.aborted == [(TRANSFER, "no more")]
    assert [rank.closed for rank in rig.ranks[2:]] == [[(TRANSFER, ErrorCode.NOT_FOUND)]] * 2
    with pytest.raises(NotFound):
        await rig.commit()


async def test_an_abort_after_the_commit_changes_nothing() -> None:
    rig = Rig()
    rig.arrive(2, 3)
    await rig.commit()
    await rig.transfers.abort(TRANSFER, EPOCH, "late")
    assert rig.owner.aborted == []
    assert await rig.commit() == []


async def test_closing_is_there_once_every_rank_has_closed() -> None:
    rig = Rig()
    for rank in rig.ranks:
        rank.closing.done.clear()
    await rig.transfers.abort(TRANSFER, EPOCH, "no more")
    first, last = (asyncio.create_task(wait(rig.transfers, TRANSFER)) for _ in range(2))
    rig.ranks[2].closing.done.set()
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    assert not last.done()
    rig.ranks[3].closing.done.set()
    await last
    await rig.transfers.close(TRANSFER)


@pytest.mark.parametrize(
    ("failure", "error"),
    [(Unavailable("rank 3 is gone"), Unavailable), (OSError("broken pipe"), InternalError)],
)
async def test_a_rank_that_cannot_close_is_a_typed_error(
    failure: Exception, error: type[EastWestError]
) -> None:
    rig = Rig()
    rig.ranks[3].closing.error = failure
    with pytest.raises(error):
        await rig.transfers.close(TRANSFER)


async def a_sealed_transfer(rig: Rig) -> asyncio.Task[list[Missing]]:
    """Its commit, which waits for a writer on rank 3."""
    rig.ranks[3].closing.done.clear()
    rig.arrive(2, 3)
    committing = asyncio.create_task(rig.commit())
    for _ in range(3):
        await asyncio.sleep(0)
    return committing


async def test_nothing_is_committed_while_somebody_may_be_writing() -> None:
    rig = Rig()
    committing = await a_sealed_transfer(rig)
    assert [rank.closed for rank in rig.ranks[2:]] == [[(TRANSFER, None)]] * 2
    assert rig.owner.committed == []
    again = asyncio.create_task(rig.commit())
    await asyncio.sleep(0)
    rig.clock.now = 7
    rig.ranks[3].closing.done.set()
    assert list(await asyncio.gather(committing, again)) == [[], []]
    assert rig.owner.committed == [(TRANSFER, TOKEN, False, TransferStats(200, 4, 30, import_ns=7))]
    assert len(rig.ranks[3].closed) == 1


async def test_a_commit_that_is_cancelled_while_it_waits_can_be_repeated() -> None:
    rig = Rig()
    committing = await a_sealed_transfer(rig)
    committing.cancel()
    await asyncio.wait([committing])
    rig.ranks[3].closing.done.set()
    assert rig.owner.committed == []
    assert await rig.commit() == []
    assert len(rig.owner.committed) == 1


@pytest.mark.parametrize("aborts", [True, False])
async def test_what_ends_a_sealed_transfer_ends_its_commit(aborts: bool) -> None:
    rig = Rig()
    committing = await a_sealed_transfer(rig)
    if aborts:
        await rig.transfers.abort(TRANSFER, EPOCH, "no more")
    else:
        rig.transfers.close(TRANSFER)
    rig.ranks[3].closing.done.set()
    with pytest.raises(NotFound):
        await committing
    assert (len(rig.owner.committed), len(rig.owner.aborted)) == (0, int(aborts))
    await rig.transfers.close(TRANSFER)
    assert len(rig.ranks[3].closed) == 1


async def test_a_lease_that_runs_out_while_a_commit_waits_ends_it() -> None:
    rig = Rig()
    committing = await a_sealed_transfer(rig)
    rig.clock.now = LEASE_NS
    rig.ranks[3].closing.done.set()
    with pytest.raises(LeaseExpired):
        await committing
    assert rig.owner.committed == []


async def wait(transfers: Transfers, transfer_id: str) -> None:
    await transfers.close(transfer_id)


async def test_what_came_from_whom_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers_module, "SOURCES_MAX", 2)
    rig = Rig()
    for number, source in enumerate(("p0", "p1", "p0", "p2")):
        rig.open(f"x{number}", source=source)
        rig.arrive(2, 3, transfer_id=f"x{number}")
        await rig.commit(f"x{number}")
    assert rig.transfers.links == (
        KvLink("p0", Transport.NIXL, 2, 400),
        KvLink("p2", Transport.NIXL, 1, 200),
    )


async def test_ended_transfers_are_remembered_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfers_module, "ENDED_MAX", 2)
    rig = Rig()
    rig.arrive(2, 3)
    await rig.commit()
    for name in ("x", "y"):
        assert await rig.commit() == []
        rig.open(name)
        rig.transfers.close(name)
    with pytest.raises(NotFound):
        await rig.commit()


@pytest.mark.parametrize(
    "blocks",
    [(15, 9, 11), (15, 9, 16), (7, 9, 10)],
    ids=["not held", "another group's", "shared, but another group's"],
)
async def test_blocks_that_cannot_be_written_are_a_programmer_error(
    blocks: tuple[int, ...],
) -> None:
    rig = Rig()
    with pytest.raises(AssertionError):
        rig.transfers.open(
            "t2",
            OWNER,
            group=1,
            blocks=blocks,
            first_block=1,
            num_blocks=3,
            num_tokens=5,
            transport=Transport.GRPC,
            source="p0",
        )


async def test_writing_to_blocks_that_were_given_back_is_a_programmer_error() -> None:
    rig = Rig()
    rig.ledger.close(OWNER)
    rig.ledger.open(OWNER, (9,), lease_until_ns=None)
    with pytest.raises(AssertionError, match="does not hold"):
        rig.transfers.check_integrity()
