"""What a receiver does with frames, commits and aborts, and what it never writes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eastwest.errors import (
    Cancelled,
    EastWestError,
    ErrorCode,
    InvalidArgument,
    LeaseExpired,
    NotFound,
    StaleEpoch,
)
from kv_transfer.plan import Region
from kv_transfer.receiver import ENDED_MAX, FrameResult, TransferStats
from tests.unit.kv_transfer.builders import (
    EPOCH,
    LEASE_NS,
    NUM_BLOCKS,
    OWNER,
    TOKEN,
    TRANSFER,
    Receiving,
    a_frame,
    a_memory,
    a_payload,
)

ALL = Receiving.region
FIRST_LAYER = Region(range(1), ALL.blocks, ALL.heads)


def commit(rig: Receiving, now_ns: int = 0, *, finished: bool = False) -> list[Region]:
    return rig.receiver.commit(TRANSFER, EPOCH, TOKEN, finished=finished, now_ns=now_ns)


def test_a_frame_lands_in_the_reserved_blocks_and_nowhere_else() -> None:
    rig, source = Receiving(), a_memory(seed=3)
    payload = bytes(source.read([0, 1], ALL.layers, ALL.heads))
    assert rig.receiver.accept(a_frame(ALL, payload=payload), 0) is FrameResult.ACCEPTED
    assert rig.memory.read([4, 5], ALL.layers, ALL.heads) == payload
    others = [b for b in range(NUM_BLOCKS) if b not in (4, 5)]
    assert not rig.memory.keys[:, :, others].any()
    assert not rig.memory.values[:, :, others].any()


def test_a_complete_transfer_commits_once_with_its_figures() -> None:
    rig = Receiving()
    rest = Region(range(1, 4), ALL.blocks, ALL.heads)
    rig.receiver.accept(a_frame(FIRST_LAYER), 10)
    rig.receiver.accept(a_frame(rest), 25)
    assert commit(rig, 32, finished=True) == []
    stats = TransferStats(len(a_payload(ALL)), frames=2, transfer_ns=15, import_ns=7)
    assert rig.owner.committed == [(TRANSFER, TOKEN, True, stats)]
    assert rig.receiver.transfers_open == 0


def test_a_repeated_commit_gets_the_same_answer_and_tells_nobody() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(ALL), 0)
    assert commit(rig) == []
    assert commit(rig, 10 * LEASE_NS) == []
    assert len(rig.owner.committed) == 1


def test_a_commit_with_a_hole_names_it_and_leaves_the_transfer_open() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(FIRST_LAYER), 0)
    (hole,) = commit(rig)
    assert hole == Region(range(1, 4), ALL.blocks, ALL.heads)
    assert rig.owner.committed == []
    assert rig.receiver.accept(a_frame(hole), 0) is FrameResult.ACCEPTED
    assert commit(rig) == []


def test_a_reservation_with_nothing_to_push_commits_at_once() -> None:
    rig = Receiving()
    rig.receiver.open("t2", OWNER, blocks=rig.blocks, first_block=3, num_blocks=3)
    assert rig.receiver.commit("t2", EPOCH, TOKEN, finished=False, now_ns=5) == []
    assert rig.owner.committed == [("t2", TOKEN, False, TransferStats(0, 0, 0, 0))]


def test_what_is_new_renews_the_lease_and_is_progress() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(FIRST_LAYER), LEASE_NS - 1)
    assert rig.ledger[OWNER].lease_until_ns == 2 * LEASE_NS - 1
    assert rig.owner.progress == [TRANSFER]


def test_a_repeated_frame_is_neither_written_nor_progress() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(FIRST_LAYER), 0)
    again = a_frame(FIRST_LAYER, fill=2)
    assert rig.receiver.accept(again, 10) is FrameResult.DUPLICATE
    assert rig.memory.read([4, 5], range(1), ALL.heads) == a_payload(FIRST_LAYER)
    assert rig.ledger[OWNER].lease_until_ns == LEASE_NS
    assert rig.owner.progress == [TRANSFER]


def test_a_partly_new_frame_is_accepted() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(FIRST_LAYER), 0)
    assert rig.receiver.accept(a_frame(ALL), 0) is FrameResult.ACCEPTED
    assert commit(rig) == []


def test_a_damaged_frame_is_counted_and_not_written() -> None:
    rig = Receiving()
    frame = a_frame(ALL)
    damaged = replace(frame, payload=memoryview(b"\x02" + bytes(frame.payload[1:])))
    assert rig.receiver.accept(damaged, 0) is FrameResult.CORRUPT
    assert rig.untouched()
    assert rig.owner.progress == []


def test_good_bytes_under_a_damaged_header_are_not_written() -> None:
    rig = Receiving()
    frame = a_frame(FIRST_LAYER)
    moved = Region(range(1, 2), ALL.blocks, ALL.heads)
    damaged = replace(frame, header=replace(frame.header, region=moved))
    assert rig.receiver.accept(damaged, 0) is FrameResult.CORRUPT
    assert rig.untouched()


@pytest.mark.parametrize(
    "region",
    [
        Region(range(4, 5), ALL.blocks, ALL.heads),
        Region(range(3, 5), ALL.blocks, ALL.heads),
        Region(range(0), ALL.blocks, ALL.heads),
        Region(ALL.layers, range(1), ALL.heads),
        Region(ALL.layers, range(2, 4), ALL.heads),
        Region(ALL.layers, range(2**32 - 1, 2**33 - 2), ALL.heads),
        Region(ALL.layers, ALL.blocks, range(1, 3)),
        Region(ALL.layers, ALL.blocks, range(2, 2)),
    ],
)
def test_kv_outside_the_reservation_is_refused(region: Region) -> None:
    rig = Receiving()
    with pytest.raises(InvalidArgument, match="allowed: inside"):
        rig.receiver.accept(a_frame(region, payload=b"x" * 64), 0)
    assert rig.untouched()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_payload_of_another_size_is_refused(change: int) -> None:
    rig = Receiving()
    size = len(a_payload(ALL))
    with pytest.raises(InvalidArgument, match=f"allowed: the {size}"):
        rig.receiver.accept(a_frame(ALL, payload=b"x" * (size + change)), 0)
    assert rig.untouched()
    assert commit(rig) == [ALL]


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_another_incarnation_is_refused(epoch: int) -> None:
    rig = Receiving()
    with pytest.raises(StaleEpoch):
        rig.receiver.accept(a_frame(ALL, epoch=epoch), 0)
    with pytest.raises(StaleEpoch):
        rig.receiver.commit(TRANSFER, epoch, TOKEN, finished=False, now_ns=0)
    with pytest.raises(StaleEpoch):
        rig.receiver.abort(TRANSFER, epoch, "gone")
    assert rig.untouched()
    assert rig.owner.aborted == []


def test_an_unknown_transfer_is_not_found() -> None:
    rig = Receiving()
    with pytest.raises(NotFound):
        rig.receiver.accept(a_frame(ALL, transfer_id="t2"), 0)
    with pytest.raises(NotFound):
        rig.receiver.commit("t2", EPOCH, TOKEN, finished=False, now_ns=0)
    rig.receiver.abort("t2", EPOCH, "idempotent")
    assert rig.untouched()


def test_an_expired_lease_refuses_frames_and_commits() -> None:
    rig = Receiving()
    with pytest.raises(LeaseExpired):
        rig.receiver.accept(a_frame(ALL), LEASE_NS)
    with pytest.raises(LeaseExpired):
        commit(rig, LEASE_NS)
    assert rig.untouched()


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (ErrorCode.NOT_FOUND, NotFound),
        (ErrorCode.LEASE_EXPIRED, LeaseExpired),
        (ErrorCode.CANCELLED, Cancelled),
    ],
)
def test_a_closed_transfer_never_writes_and_says_why(
    reason: ErrorCode, error: type[EastWestError]
) -> None:
    rig = Receiving()
    rig.receiver.close(TRANSFER, reason)
    rig.receiver.close(TRANSFER)
    with pytest.raises(error):
        rig.receiver.accept(a_frame(ALL), 0)
    with pytest.raises(error):
        commit(rig)
    assert rig.untouched()
    assert rig.owner.aborted == []


def test_a_frame_after_the_commit_never_writes() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(ALL), 0)
    commit(rig)
    with pytest.raises(NotFound):
        rig.receiver.accept(a_frame(ALL, fill=2), 0)
    assert rig.memory.read([4, 5], ALL.layers, ALL.heads) == a_payload(ALL)


def test_an_abort_ends_the_transfer_and_tells_the_owner_once() -> None:
    rig = Receiving()
    rig.receiver.abort(TRANSFER, EPOCH, "no more")
    rig.receiver.abort(TRANSFER, EPOCH, "no more")
    assert rig.owner.aborted == [(TRANSFER, "no more")]
    with pytest.raises(NotFound):
        rig.receiver.accept(a_frame(ALL), 0)
    assert rig.untouched()


def test_an_abort_after_the_commit_changes_nothing() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(ALL), 0)
    commit(rig)
    rig.receiver.abort(TRANSFER, EPOCH, "late")
    assert rig.owner.aborted == []
    assert commit(rig) == []


def test_ended_transfers_are_remembered_up_to_a_bound() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(ALL), 0)
    commit(rig)
    for i in range(ENDED_MAX - 1):
        rig.receiver.open(f"x{i}", OWNER, blocks=rig.blocks, first_block=3, num_blocks=3)
        rig.receiver.close(f"x{i}")
    assert commit(rig) == []
    rig.receiver.open("last", OWNER, blocks=rig.blocks, first_block=3, num_blocks=3)
    rig.receiver.close("last")
    with pytest.raises(NotFound):
        commit(rig)


def test_opening_what_its_owner_does_not_hold_is_a_programmer_error() -> None:
    rig = Receiving()
    with pytest.raises(AssertionError):
        rig.receiver.open("t2", OWNER, blocks=(9, 4, 6), first_block=1, num_blocks=3)
    with pytest.raises(AssertionError):
        rig.receiver.open(TRANSFER, OWNER, blocks=rig.blocks, first_block=1, num_blocks=3)
    with pytest.raises(AssertionError):
        rig.receiver.open("t2", OWNER, blocks=rig.blocks, first_block=1, num_blocks=4)


def test_integrity_needs_every_open_transfer_to_hold_what_it_writes() -> None:
    rig = Receiving()
    rig.receiver.check_integrity()
    rig.ledger.close(OWNER)
    rig.ledger.open(OWNER, (9, 4), lease_until_ns=None)
    with pytest.raises(AssertionError):
        rig.receiver.check_integrity()
