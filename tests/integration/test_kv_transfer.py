"""KV over real gRPC: it arrives byte for byte, or one typed error ends it and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from eastwest.clock import SystemClock, ns
from eastwest.config import KVConfig
from eastwest.errors import (
    ConfigError,
    CorruptData,
    DeadlineExceeded,
    EastWestError,
    ErrorCode,
    Incompatible,
    InvalidArgument,
    LeaseExpired,
    NotFound,
    Phase,
    StaleEpoch,
    TransferFailed,
    Unavailable,
)
from eastwest.layout import KVSpec, ParallelLayout
from eastwest.messages import RankEndpoint, Ticket
from eastwest.testing import faults
from kv_transfer import sender as sender_module
from kv_transfer.frame_codec import Header, decode, encode
from kv_transfer.sender import KvSender
from tests.integration.kv_pair import (
    BLOCK_TOKENS,
    LEASE_S,
    SPEC,
    TOKEN,
    Pair,
    a_pair,
)

FRAMES = 8  # of one whole transfer: four layers, twice up to four blocks


async def test_kv_leaves_while_the_rest_is_still_computed() -> None:
    async with a_pair() as pair:
        push = pair.begin(pair.reserve(first_block=1))
        push.ready(3)
        await pair.rank.progressed.wait()
        push.ready(2)  # what was ready stays so
        push.ready(6)
        stats = await push.finish(TOKEN, finished=False)
        assert pair.rank.holds(pair.source, first_block=1)
        assert stats.bytes == SPEC.slice_bytes(5 * BLOCK_TOKENS, 4, 2)
        assert stats.resent_frames == 0
        received = pair.rank.committed["t1"]
        assert (received.bytes, received.frames) == (stats.bytes, stats.frames)


async def test_nothing_to_push_commits_at_once() -> None:
    async with a_pair() as pair:
        push = pair.begin(pair.reserve(first_block=6))
        stats = await push.finish(TOKEN, finished=True)
        assert (stats.bytes, stats.frames) == (0, 0)
        assert pair.rank.untouched
        assert "t1" in pair.rank.committed


async def test_one_rank_feeds_several() -> None:
    async with a_pair(layout=ParallelLayout(tp=2, pp=2)) as pair:
        await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
        assert len(pair.ranks) == 4
        assert all(rank.holds(pair.source) for rank in pair.ranks)


async def test_transfers_share_a_connection() -> None:
    async with a_pair() as pair:
        pushes = [pair.begin_ready(pair.reserve()) for _ in range(5)]
        await asyncio.gather(*(push.finish(TOKEN, finished=False) for push in pushes))
        assert pair.rank.holds(pair.source)
        assert len(pair.rank.committed) == 5


@pytest.mark.parametrize(
    ("make_tap", "resent"),
    [
        (lambda: faults.corrupt_frames((2,)), 1),
        (lambda: faults.corrupt_frames((2,), offset=3), 1),
        (lambda: faults.corrupt_frames((2,), offset=0), 1),
        (lambda: faults.corrupt_frames((0, FRAMES - 1)), 2),
        (lambda: faults.corrupt_frames(range(FRAMES)), FRAMES),
        (lambda: faults.corrupt_frames((2, FRAMES)), 2),
        (lambda: faults.drop_frames((2,)), 1),
        (lambda: faults.drop_frames(range(FRAMES)), FRAMES),
        (faults.duplicate_frames, 0),
        (lambda: faults.reverse_frames, 0),
    ],
    ids=[
        "payload", "header", "envelope", "two", "all", "again",
        "lost", "all lost", "duplicated", "reordered",
    ],
)  # fmt: skip
async def test_a_bad_network_costs_only_what_it_damaged(
    make_tap: Callable[[], sender_module.FrameTap], resent: int
) -> None:
    async with a_pair(tap=make_tap()) as pair:
        stats = await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
        assert pair.rank.holds(pair.source)
        # What is missing may be asked for in other portions than it was sent in.
        assert (stats.resent_frames > 0) == (resent > 0)
        assert stats.resent_frames <= resent
        assert pair.rank.committed["t1"].bytes == SPEC.slice_bytes(6 * BLOCK_TOKENS, 4, 2)


async def test_a_network_that_damages_everything_fails_the_transfer() -> None:
    tap = faults.corrupt_frames(faults.ALL)
    async with a_pair(tap=tap) as pair:
        ticket = pair.reserve()
        with pytest.raises(TransferFailed) as caught:
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        assert caught.value.phase is Phase.TRANSFER
        assert pair.rank.untouched
        assert tap.hits == FRAMES * sender_module.ATTEMPTS_MAX
        pair.cancel(ticket)


async def test_a_stream_of_damaged_frames_is_ended() -> None:
    garbage = faults.ChangeFrames(lambda frame: [frame[1:]] * 100)
    async with a_pair(tap=garbage) as pair:
        ticket = pair.reserve()
        with pytest.raises(CorruptData):
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        assert pair.rank.untouched
        pair.cancel(ticket)


def forged(change: Callable[[Header], Header]) -> faults.ChangeFrames:
    """Frames whose check holds for a header that names something else."""

    def forge(frame: bytes) -> list[bytes]:
        honest = decode(frame)
        return [encode(change(honest.header), honest.payload)]

    return faults.ChangeFrames(forge)


def outside(header: Header) -> Header:
    blocks = header.region.blocks
    moved = range(blocks.start + 6, blocks.stop + 6)
    return replace(header, region=replace(header.region, blocks=moved))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda header: replace(header, epoch=header.epoch - 1), StaleEpoch),
        (lambda header: replace(header, transfer_id="t9"), NotFound),
        (outside, InvalidArgument),
        (lambda h: replace(h, region=replace(h.region, layers=range(2))), InvalidArgument),
        (lambda h: replace(h, region=replace(h.region, heads=range(0))), InvalidArgument),
    ],
    ids=["epoch", "transfer", "blocks", "size", "nothing"],
)
async def test_frames_for_anything_else_are_refused_and_write_nothing(
    change: Callable[[Header], Header], error: type[EastWestError]
) -> None:
    async with a_pair(tap=forged(change)) as pair:
        ticket = pair.reserve()
        with pytest.raises(error) as caught:
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        assert caught.value.phase is Phase.TRANSFER
        assert pair.rank.untouched
        pair.cancel(ticket)


async def test_a_ticket_of_a_former_incarnation_is_refused() -> None:
    async with a_pair() as pair:
        ticket = pair.reserve()
        push = pair.begin_ready(replace(ticket, epoch=ticket.epoch - 1))
        with pytest.raises(StaleEpoch):
            await push.finish(TOKEN, finished=False)
        assert pair.rank.untouched
        pair.cancel(ticket)


async def test_a_reservation_whose_lease_ran_out_takes_nothing() -> None:
    async with a_pair() as pair:
        ticket = pair.reserve()
        pair.rank.clock.ahead_ns = ns(LEASE_S)
        with pytest.raises(LeaseExpired):
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        assert pair.rank.untouched
        pair.cancel(ticket)


async def test_a_lease_that_runs_out_in_mid_push_stops_the_writing() -> None:
    tap = faults.HoldFrames(passed=2)
    async with a_pair(tap=tap) as pair:
        push = pair.begin_ready(pair.reserve())
        await tap.held.wait()
        await pair.rank.progressed.wait()
        pair.rank.clock.ahead_ns = ns(2 * LEASE_S)
        (expired,) = pair.rank.ledger.expired(pair.rank.clock.now_ns())
        pair.rank.receiver.close(expired.id, ErrorCode.LEASE_EXPIRED)
        pair.rank.ledger.close(expired)
        before = pair.rank.memory.keys.copy()
        tap.gate.set()
        with pytest.raises(LeaseExpired):
            await push.finish(TOKEN, finished=False)
        assert (pair.rank.memory.keys == before).all()


async def test_an_abort_in_mid_push_frees_the_reservation() -> None:
    tap = faults.HoldFrames(passed=2)
    async with a_pair(tap=tap) as pair:
        push = pair.begin_ready(pair.reserve())
        await tap.held.wait()
        await push.abort()
        assert pair.rank.aborted == ["t1"]
        before = pair.rank.memory.keys.copy()
        tap.gate.set()
        await push.abort()
        assert pair.rank.aborted == ["t1"]
        assert (pair.rank.memory.keys == before).all()


async def test_an_abort_before_anything_is_computed_frees_the_reservation() -> None:
    async with a_pair() as pair:
        push = pair.begin(pair.reserve())
        await push.abort()
        assert pair.rank.aborted == ["t1"]
        assert pair.rank.untouched


async def test_an_abort_after_the_commit_changes_nothing() -> None:
    async with a_pair() as pair:
        push = pair.begin_ready(pair.reserve())
        await push.finish(TOKEN, finished=False)
        await push.abort()
        assert pair.rank.aborted == []


async def test_a_cancelled_finish_leaves_nothing_running() -> None:
    tap = faults.HoldFrames()
    async with a_pair(tap=tap) as pair:
        ticket = pair.reserve()
        finishing = asyncio.ensure_future(pair.begin_ready(ticket).finish(TOKEN, finished=False))
        await tap.held.wait()
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finishing
        own = {task for task in asyncio.all_tasks() if "Push." in repr(task.get_coro())}
        assert not own
        pair.cancel(ticket)


async def test_the_deadline_ends_a_push_that_is_held_up() -> None:
    tap = faults.HoldFrames()
    async with a_pair(tap=tap) as pair:
        ticket = pair.reserve()
        with pytest.raises(DeadlineExceeded) as caught:
            await pair.begin_ready(ticket, timeout_s=0.05).finish(TOKEN, finished=False)
        assert caught.value.phase is Phase.TRANSFER
        pair.cancel(ticket)


async def test_a_deadline_that_has_passed_sends_nothing() -> None:
    async with a_pair() as pair:
        ticket = pair.reserve()
        with pytest.raises(DeadlineExceeded):
            await pair.begin_ready(ticket, timeout_s=-1).finish(TOKEN, finished=False)
        assert pair.rank.untouched
        pair.cancel(ticket)


async def test_a_receiver_that_dies_in_mid_push_is_unavailable() -> None:
    tap = faults.HoldFrames(passed=2)
    async with a_pair(tap=tap) as pair:
        ticket = pair.reserve()
        push = pair.begin_ready(ticket)
        await pair.rank.progressed.wait()
        await tap.held.wait()
        await pair.rank.server.stop(None)
        tap.gate.set()
        with pytest.raises(Unavailable) as caught:
            await push.finish(TOKEN, finished=False)
        assert caught.value.phase is Phase.TRANSFER
        await push.abort()
        pair.cancel(ticket)


async def test_a_connection_that_breaks_in_mid_push_costs_only_what_was_on_it() -> None:
    tap = faults.HoldFrames(passed=2)
    async with a_pair(tap=tap) as pair:
        push = pair.begin_ready(pair.reserve())
        await tap.held.wait()
        await pair.rank.break_connections()
        tap.gate.set()
        stats = await push.finish(TOKEN, finished=False)
        assert pair.rank.holds(pair.source)
        assert 0 < stats.resent_frames <= FRAMES


async def test_nobody_at_the_address_is_unavailable() -> None:
    async with a_pair() as pair:
        ticket = pair.reserve()
        await pair.rank.server.stop(None)
        with pytest.raises(Unavailable):
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        pair.cancel(ticket)


async def test_closing_the_sender_ends_its_pushes() -> None:
    tap = faults.HoldFrames(passed=1)
    async with a_pair(tap=tap) as pair:
        ticket = pair.reserve()
        push = pair.begin_ready(ticket)
        await tap.held.wait()
        await pair.sender.close()
        await push.abort()
        pair.cancel(ticket)


async def test_bytes_on_the_way_are_bounded_over_all_transfers() -> None:
    tap = faults.HoldFrames()
    # Two frames at once.
    config = KVConfig(block_tokens=BLOCK_TOKENS, frame_bytes=1 << 19, inflight_bytes=1 << 20)
    async with a_pair(tap=tap, config=config) as pair:
        pushes = [pair.begin_ready(pair.reserve()) for _ in range(4)]
        await tap.held.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert tap.seen == 2
        tap.gate.set()
        await asyncio.gather(*(push.finish(TOKEN, finished=False) for push in pushes))
        assert tap.seen == 4


async def test_connections_that_nobody_uses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "PEERS_MAX", 2)
    async with a_pair(layout=ParallelLayout(pp=4)) as pair:
        await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
        assert len(pair.sender._peers) == 2
        await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
        assert all(rank.holds(pair.source) for rank in pair.ranks)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: replace(t, fingerprint="other"), "model fingerprint is model here and other"),
        (lambda t: replace(t, block_tokens=8), "block size is 16 here and 8 at d0"),
        (lambda t: replace(t, kv=KVSpec(4, 2, 8, 8, "bfloat16")), "KV form"),
        (lambda t: replace(t, layout=ParallelLayout(tp=3)), "neither divides nor"),
    ],
)
async def test_what_does_not_fit_is_refused_before_anything_is_sent(
    change: Callable[[Ticket], Ticket], named: str
) -> None:
    async with a_pair() as pair:
        await expect_refusal(pair, change, Incompatible, named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: replace(t, num_blocks=7), "blocks 0 to 7; allowed: inside the sequence's 6"),
        (lambda t: replace(t, first_block=-1), "blocks -1 to 6"),
        (lambda t: replace(t, first_block=7), "blocks 7 to 6"),
        (lambda t: replace(t, endpoints=(RankEndpoint(1, "x:1"),)), "no address for ranks"),
    ],
)
async def test_a_ticket_that_makes_no_sense_is_refused(
    change: Callable[[Ticket], Ticket], named: str
) -> None:
    async with a_pair() as pair:
        await expect_refusal(pair, change, InvalidArgument, named)


async def expect_refusal(
    pair: Pair, change: Callable[[Ticket], Ticket], error: type[EastWestError], named: str
) -> None:
    ticket = pair.reserve()
    with pytest.raises(error, match=named):
        pair.begin(change(ticket))
    pair.cancel(ticket)


async def test_frames_too_small_for_a_block_are_refused_at_start() -> None:
    async with a_pair() as pair:
        config = KVConfig(block_tokens=BLOCK_TOKENS, frame_bytes=1 << 12)
        pair.source.block_tokens = 1024
        with pytest.raises(ConfigError, match=r"kv\.frame_bytes is 4096; allowed: at least 65536"):
            KvSender(pair.source, ParallelLayout(), 0, config, SystemClock(), fingerprint="model")
