"""KV over real gRPC: it arrives byte for byte, or one typed error ends it and nothing is left."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from eastwest.clock import SystemClock, ns
from eastwest.config import KVConfig
from eastwest.errors import (
    Cancelled,
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
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.rpc import server_options
from eastwest.testing import faults
from eastwest.testing.kv_memory import ArrayKVMemory
from kv_transfer import connections, group_push
from kv_transfer.frame_codec import Header, decode, encode
from kv_transfer.push import FrameTap
from kv_transfer.sender import KvSender
from kv_transfer.service import SERVICE
from tests.integration.kv_pair import (
    BLOCK_TOKENS,
    EPOCH,
    LEASE_S,
    NUM_TOKENS,
    SPEC,
    TOKEN,
    Pair,
    Side,
    a_pair,
    everywhere,
)

FRAMES = 8  # of one whole transfer between single ranks: four layers, twice up to four blocks
MISSING_BLOCKS = 6  # of a whole transfer


async def test_kv_leaves_while_the_rest_is_still_computed() -> None:
    async with a_pair() as pair:
        push = pair.begin(pair.reserve(first_block=1))
        push.ready(3 * BLOCK_TOKENS)
        await pair.target.progressed.wait()
        push.ready(2 * BLOCK_TOKENS)  # what was ready stays so
        push.ready(NUM_TOKENS)
        stats = await push.finish(TOKEN, finished=False)
        assert pair.arrived(first_block=1)
        assert stats.bytes == pair.payload_bytes(first_block=1)
        assert stats.resent_frames == 0
        received = pair.target.committed["t1"]
        assert (received.bytes, received.frames) == (stats.bytes, stats.frames)


async def test_kv_leaves_layer_by_layer_in_whole_blocks() -> None:
    async with a_pair() as pair:
        push = pair.begin(pair.reserve())
        sender = pair.source.ranks[0]
        # Half a block of two layers: nothing can leave yet. Then one block of one layer can.
        sender.progress("t1", range(2), BLOCK_TOKENS // 2)
        sender.progress("t1", range(2, 3), BLOCK_TOKENS + 1)
        await pair.target.progressed.wait()
        missing = await pair.target.receivers[0].missing("t1")
        cells = sum(len(m.layers) * len(m.blocks) for m in missing)
        assert cells == 4 * MISSING_BLOCKS - 1
        for layer in range(4):
            sender.progress("t1", range(layer, layer + 1), NUM_TOKENS)
        stats = await push.finish(TOKEN, finished=False)
        assert pair.arrived()
        assert stats.bytes == pair.payload_bytes()


async def test_nothing_to_push_commits_at_once() -> None:
    async with a_pair(dst=Side(ParallelLayout(tp=2))) as pair:
        push = pair.begin(pair.reserve(first_block=6))
        stats = await push.finish(TOKEN, finished=True)
        assert (stats.bytes, stats.frames) == (0, 0)
        assert pair.target.untouched
        assert "t1" in pair.target.committed


GQA = KVSpec(num_layers=7, num_kv_heads=4, key_dim=8, value_dim=8, dtype="float32")
MHA6 = KVSpec(num_layers=5, num_kv_heads=6, key_dim=8, value_dim=8, dtype="bfloat16")
MQA = KVSpec(num_layers=3, num_kv_heads=1, key_dim=8, value_dim=8, dtype="float16")
MLA = KVSpec(num_layers=5, num_kv_heads=1, key_dim=24, value_dim=0, dtype="bfloat16")


def layout(tp: int = 1, pp: int = 1, dp: int = 1) -> ParallelLayout:
    return ParallelLayout(tp=tp, pp=pp, dp=dp)


@pytest.mark.parametrize(
    ("kv", "src", "dst"),
    [
        (GQA, layout(), layout(tp=2, pp=2)),
        (GQA, layout(tp=2, pp=2), layout()),
        (GQA, layout(tp=4), layout(pp=3)),
        (GQA, layout(pp=3), layout(tp=4)),
        (GQA, layout(tp=2), layout(tp=8)),
        (GQA, layout(tp=8), layout(tp=2)),
        (GQA, layout(pp=2), layout(pp=3)),
        (GQA, layout(tp=2, dp=2), layout(tp=4, dp=2)),
        (MHA6, layout(tp=2), layout(tp=3)),
        (MHA6, layout(tp=3, pp=2), layout(tp=2, pp=3)),
        (MQA, layout(tp=3), layout(tp=2)),
        (MLA, layout(tp=4), layout(pp=2)),
        (MLA, layout(pp=2), layout(tp=4)),
        (MLA, layout(), layout(dp=2)),
    ],
    ids=lambda v: str(v) if isinstance(v, ParallelLayout) else "",
)
async def test_any_layout_feeds_any_other(
    kv: KVSpec, src: ParallelLayout, dst: ParallelLayout
) -> None:
    async with a_pair(Side(src, kv, 16), Side(dst, kv, 12)) as pair:
        push = pair.begin(pair.reserve(first_block=2))
        for tokens in range(0, NUM_TOKENS, 25):
            push.ready(tokens)
        push.ready(NUM_TOKENS)
        stats = await push.finish(TOKEN, finished=False)
        assert pair.arrived(first_block=2)
        # Each byte of each rank once, and no other.
        assert stats.bytes == pair.payload_bytes(first_block=2)
        assert pair.target.committed["t1"].bytes == stats.bytes


@pytest.mark.parametrize(("ours", "theirs"), [(16, 16), (16, 4), (4, 16), (10, 15), (32, 5)])
async def test_block_sizes_need_not_agree(ours: int, theirs: int) -> None:
    async with a_pair(Side(block_tokens=ours), Side(layout(tp=2), SPEC, theirs)) as pair:
        await pair.begin_ready(pair.reserve(first_block=1)).finish(TOKEN, finished=False)
        assert pair.arrived(first_block=1)


@pytest.mark.parametrize("theirs", ["bfloat16", "int8", "float8_e4m3"])
@pytest.mark.parametrize("ours", ["float32", "bfloat16", "int8"])
async def test_kv_arrives_in_the_dtype_of_the_receiver(ours: str, theirs: str) -> None:
    src = Side(layout(pp=2), replace(SPEC, dtype=ours))
    dst = Side(layout(tp=2), replace(SPEC, dtype=theirs), block_tokens=12)
    async with a_pair(src, dst) as pair:
        stats = await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
        assert pair.arrived()
        assert stats.bytes == pair.payload_bytes()


async def test_transfers_share_a_connection() -> None:
    async with a_pair() as pair:
        pushes = [pair.begin_ready(pair.reserve()) for _ in range(5)]
        await asyncio.gather(*(push.finish(TOKEN, finished=False) for push in pushes))
        assert pair.arrived()
        assert len(pair.target.committed) == 5
        assert pair.target.transfers.links[0].transfers == 5


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
    make_tap: Callable[[], FrameTap], resent: int
) -> None:
    async with a_pair(taps=everywhere(make_tap())) as pair:
        stats = await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
        assert pair.arrived()
        # What is missing may be asked for in other portions than it was sent in.
        assert (stats.resent_frames > 0) == (resent > 0)
        assert stats.resent_frames <= resent
        assert pair.target.committed["t1"].bytes == pair.payload_bytes()


@pytest.mark.parametrize(
    "make_tap",
    [
        lambda: faults.corrupt_frames((1,)),
        lambda: faults.drop_frames((0, 1)),
        faults.duplicate_frames,
        lambda: faults.reverse_frames,
    ],
    ids=["damaged", "lost", "duplicated", "reordered"],
)
async def test_a_bad_network_between_many_ranks_costs_only_what_it_damaged(
    make_tap: Callable[[], FrameTap],
) -> None:
    src, dst = Side(layout(tp=2, pp=2)), Side(layout(tp=4), SPEC, 12)
    async with a_pair(src, dst, taps=lambda rank: make_tap()) as pair:
        stats = await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
        assert pair.arrived()
        assert pair.target.committed["t1"].bytes == pair.payload_bytes()
        assert stats.resent_frames < stats.frames


async def test_a_commit_with_a_hole_on_one_rank_names_it() -> None:
    only_rank_1: Callable[[int], FrameTap] = lambda rank: faults.drop_frames(  # noqa: E731
        faults.ALL if rank == 1 else ()
    )
    async with a_pair(Side(layout(tp=2)), Side(layout(tp=2)), taps=only_rank_1) as pair:
        ticket = pair.reserve()
        push = pair.begin_ready(ticket)
        await asyncio.gather(*(rank.drain("t1") for rank in pair.source.ranks))
        missing = await pair.target.transfers.commit("t1", EPOCH, TOKEN, finished=False)
        assert {hole.dst_rank for hole in missing} == {1}
        (hole,) = missing
        assert (hole.region.heads, len(hole.region.blocks)) == (range(1, 2), MISSING_BLOCKS)
        with pytest.raises(TransferFailed):
            await push.finish(TOKEN, finished=False)
        pair.cancel(ticket)


async def test_a_network_that_damages_everything_fails_the_transfer() -> None:
    tap = faults.corrupt_frames(faults.ALL)
    async with a_pair(taps=everywhere(tap)) as pair:
        ticket = pair.reserve()
        with pytest.raises(TransferFailed) as caught:
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        assert caught.value.phase is Phase.TRANSFER
        assert pair.target.untouched
        assert tap.hits == FRAMES * group_push.ATTEMPTS_MAX
        pair.cancel(ticket)


async def test_a_stream_of_damaged_frames_is_ended() -> None:
    garbage = faults.ChangeFrames(lambda frame: [frame[1:]] * 100)
    async with a_pair(taps=everywhere(garbage)) as pair:
        ticket = pair.reserve()
        with pytest.raises(CorruptData):
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        assert pair.target.untouched
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
        (outside, TransferFailed),
        (lambda h: replace(h, region=replace(h.region, layers=range(2))), TransferFailed),
        (lambda h: replace(h, region=replace(h.region, heads=range(0))), TransferFailed),
    ],
    ids=["epoch", "transfer", "blocks", "size", "nothing"],
)
async def test_frames_for_anything_else_are_refused_and_write_nothing(
    change: Callable[[Header], Header], error: type[EastWestError]
) -> None:
    async with a_pair(taps=everywhere(forged(change))) as pair:
        ticket = pair.reserve()
        with pytest.raises(error) as caught:
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        assert caught.value.phase is Phase.TRANSFER
        assert pair.target.untouched
        pair.cancel(ticket)


async def test_a_ticket_of_a_former_incarnation_is_refused() -> None:
    async with a_pair(dst=Side(layout(tp=2))) as pair:
        ticket = pair.reserve()
        push = pair.begin_ready(replace(ticket, epoch=ticket.epoch - 1))
        with pytest.raises(StaleEpoch):
            await push.finish(TOKEN, finished=False)
        assert pair.target.untouched
        pair.cancel(ticket)


async def test_a_reservation_whose_lease_ran_out_is_not_committed() -> None:
    async with a_pair() as pair:
        ticket = pair.reserve()
        pair.target.clock.ahead_ns = ns(LEASE_S)
        with pytest.raises(LeaseExpired):
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        assert pair.target.committed == {}
        pair.cancel(ticket)


async def test_a_lease_that_runs_out_in_mid_push_stops_the_writing() -> None:
    tap = faults.HoldFrames(passed=2)
    dst = Side(layout(tp=2))
    async with a_pair(dst=dst, taps=everywhere(tap)) as pair:
        target = pair.target
        push = pair.begin_ready(pair.reserve())
        await tap.held.wait()
        await target.progressed.wait()
        target.clock.ahead_ns = ns(2 * LEASE_S)
        (expired,) = target.ledger.expired(target.clock.now_ns())
        await target.transfers.close(expired.id, ErrorCode.LEASE_EXPIRED)
        target.ledger.close(expired)
        before = [memory.buffer.copy() for memory in target.memories]
        tap.gate.set()
        with pytest.raises(LeaseExpired):
            await push.finish(TOKEN, finished=False)
        for memory, was in zip(target.memories, before, strict=True):
            assert (memory.buffer == was).all()


async def test_an_abort_in_mid_push_frees_the_reservation_on_every_rank() -> None:
    tap = faults.HoldFrames(passed=2)
    async with a_pair(dst=Side(layout(pp=2)), taps=everywhere(tap)) as pair:
        push = pair.begin_ready(pair.reserve())
        await tap.held.wait()
        await push.abort()
        assert pair.target.aborted == ["t1"]
        before = [memory.buffer.copy() for memory in pair.target.memories]
        tap.gate.set()
        await push.abort()
        assert pair.target.aborted == ["t1"]
        for memory, was in zip(pair.target.memories, before, strict=True):
            assert (memory.buffer == was).all()


async def test_an_abort_before_anything_is_computed_frees_the_reservation() -> None:
    async with a_pair() as pair:
        push = pair.begin(pair.reserve())
        await push.abort()
        assert pair.target.aborted == ["t1"]
        assert pair.target.untouched


async def test_an_abort_after_the_commit_changes_nothing() -> None:
    async with a_pair() as pair:
        push = pair.begin_ready(pair.reserve())
        await push.finish(TOKEN, finished=False)
        await push.abort()
        assert pair.target.aborted == []


def of_pushes() -> set[asyncio.Task[object]]:
    """Tasks of this room that run."""
    return {task for task in asyncio.all_tasks() if "Push." in repr(task.get_coro())}


async def test_a_cancelled_finish_leaves_nothing_running() -> None:
    tap = faults.HoldFrames()
    async with a_pair(Side(layout(tp=2)), Side(layout(pp=2)), taps=everywhere(tap)) as pair:
        ticket = pair.reserve()
        finishing = asyncio.ensure_future(pair.begin_ready(ticket).finish(TOKEN, finished=False))
        await tap.held.wait()
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finishing
        assert not of_pushes()
        pair.cancel(ticket)


async def test_nothing_reads_the_blocks_of_a_push_that_was_stopped() -> None:
    tap = faults.HoldFrames(passed=1)
    async with a_pair(taps=everywhere(tap)) as pair:
        ticket = pair.reserve()
        push = pair.begin_ready(ticket)
        await tap.held.wait()
        await push.stop()
        seen = tap.seen
        tap.gate.set()
        push.ready(NUM_TOKENS)
        pair.source.ranks[0].progress("t1", range(4), NUM_TOKENS)
        await asyncio.sleep(0)
        assert tap.seen == seen
        with pytest.raises(NotFound, match="is not being sent"):
            await pair.source.ranks[0].drain("t1")
        pair.cancel(ticket)


async def test_the_deadline_ends_a_push_that_is_held_up() -> None:
    tap = faults.HoldFrames()
    async with a_pair(taps=everywhere(tap)) as pair:
        ticket = pair.reserve()
        with pytest.raises(DeadlineExceeded) as caught:
            await pair.begin_ready(ticket, timeout_s=0.05).finish(TOKEN, finished=False)
        assert caught.value.phase is Phase.TRANSFER
        pair.cancel(ticket)


async def test_the_deadline_ends_a_rank_that_waits_for_kv() -> None:
    async with a_pair() as pair:
        ticket = pair.reserve()
        (rank,) = pair.source.ranks
        rank.begin(ticket, pair.source.side.blocks, 0.05)
        with pytest.raises(DeadlineExceeded):
            await rank.drain("t1")
        await rank.stop("t1")
        pair.cancel(ticket)


async def test_a_deadline_that_has_passed_sends_nothing() -> None:
    async with a_pair() as pair:
        ticket = pair.reserve()
        with pytest.raises(DeadlineExceeded):
            await pair.begin_ready(ticket, timeout_s=-1).finish(TOKEN, finished=False)
        assert pair.target.untouched
        pair.cancel(ticket)


async def test_a_receiver_that_dies_in_mid_push_is_unavailable() -> None:
    tap = faults.HoldFrames(passed=2)
    async with a_pair(taps=everywhere(tap)) as pair:
        ticket = pair.reserve()
        push = pair.begin_ready(ticket)
        await pair.target.progressed.wait()
        await tap.held.wait()
        await pair.target.stop()
        tap.gate.set()
        with pytest.raises(Unavailable) as caught:
            await push.finish(TOKEN, finished=False)
        assert caught.value.phase is Phase.TRANSFER
        await push.abort()
        pair.cancel(ticket)


async def test_a_dead_rank_of_several_fails_the_transfer() -> None:
    async with a_pair(dst=Side(layout(tp=2))) as pair:
        ticket = pair.reserve()
        await pair.target.servers[1].stop(None)
        push = pair.begin_ready(ticket)
        with pytest.raises(TransferFailed):
            await push.finish(TOKEN, finished=False)
        await push.abort()
        assert pair.target.aborted == ["t1"]


async def test_a_connection_that_breaks_in_mid_push_costs_only_what_was_on_it() -> None:
    tap = faults.HoldFrames(passed=2)
    async with a_pair(dst=Side(layout(pp=2)), taps=everywhere(tap)) as pair:
        push = pair.begin_ready(pair.reserve())
        await tap.held.wait()
        await pair.target.break_connections(1)
        tap.gate.set()
        stats = await push.finish(TOKEN, finished=False)
        assert pair.arrived()
        assert 0 < stats.resent_frames <= FRAMES // 2


async def test_nobody_at_the_address_is_unavailable() -> None:
    async with a_pair() as pair:
        ticket = pair.reserve()
        await pair.target.stop()
        with pytest.raises(Unavailable):
            await pair.begin_ready(ticket).finish(TOKEN, finished=False)
        pair.cancel(ticket)


async def test_closing_the_sender_ends_its_pushes() -> None:
    tap = faults.HoldFrames(passed=1)
    async with a_pair(taps=everywhere(tap)) as pair:
        ticket = pair.reserve()
        finishing = asyncio.create_task(pair.begin_ready(ticket).finish(TOKEN, finished=False))
        await tap.held.wait()
        await pair.source.close()
        with pytest.raises(Cancelled, match="stopped"):
            await finishing
        assert not of_pushes()
        pair.cancel(ticket)


async def test_bytes_on_the_way_are_bounded_over_all_transfers() -> None:
    tap = faults.HoldFrames()
    # Two frames at once.
    config = KVConfig(block_tokens=BLOCK_TOKENS, frame_bytes=1 << 19, inflight_bytes=1 << 20)
    async with a_pair(taps=everywhere(tap), config=config) as pair:
        pushes = [pair.begin_ready(pair.reserve()) for _ in range(4)]
        await tap.held.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert tap.seen == 2
        tap.gate.set()
        await asyncio.gather(*(push.finish(TOKEN, finished=False) for push in pushes))
        assert tap.seen == 4


async def test_a_slow_receiver_slows_only_its_own_senders() -> None:
    kv = replace(SPEC, num_layers=32, key_dim=512, value_dim=512)
    config = KVConfig(block_tokens=BLOCK_TOKENS, frame_bytes=1 << 19, inflight_bytes=1 << 20)
    sent: Counter[str] = Counter()

    async def counting(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            sent[decode(frame).header.transfer_id] += 1
            yield frame

    pairs = a_pair(Side(kv=kv), Side(kv=kv), config=config, taps=everywhere(counting))
    async with pairs as pair, a_rank_that_reads_nothing() as address:
        stuck = replace(pair.reserve(), endpoints=(RankEndpoint(0, address),))
        push = pair.begin_ready(stuck)
        for _ in range(3):
            await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
        assert pair.arrived()
        # What is on the way to the stuck rank is bounded, by us and by gRPC's own windows.
        assert 0 < sent["t1"] < sent["t2"] // 2
        await push.abort()
        assert pair.target.aborted == ["t1"]


@asynccontextmanager
async def a_rank_that_reads_nothing() -> AsyncIterator[str]:
    """The address of a server that takes a Push call and no frame of it."""
    forever = asyncio.Event()

    async def push(messages: AsyncIterator[bytes], context: object) -> bytes:
        await forever.wait()
        return b""

    server = grpc.aio.server(options=server_options(1 << 20))
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(push)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Push": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_connections_that_nobody_uses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PEERS_MAX", 2)
    async with a_pair(dst=Side(layout(pp=4))) as pair:
        for _ in range(2):
            await pair.begin_ready(pair.reserve()).finish(TOKEN, finished=False)
            assert len(pair.source.ranks[0]._connections) == 2
        assert pair.arrived()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: replace(t, fingerprint="other"), "model fingerprint is model here and other"),
        (lambda t: replace(t, kv=KVSpec(4, 2, 8, 4, "float32")), "KV form"),
        (lambda t: replace(t, kv=KVSpec(4, 2, 8, 8, "int4")), "KV dtype is int4 at d0"),
        (lambda t: replace(t, layout=ParallelLayout(tp=3)), "neither divides nor"),
        (lambda t: replace(t, transport=Transport.NIXL), "by nixl; allowed here: grpc"),
        (
            lambda t: replace(t, block_tokens=200, num_blocks=1),
            "has 12800 bytes at d0; allowed here: up to kv.frame_bytes, 8192",
        ),
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
        (lambda t: replace(t, num_blocks=7), "7 blocks of 16 tokens end with token 90"),
        (lambda t: replace(t, num_tokens=97), "6 blocks of 16 tokens end with token 97"),
        (lambda t: replace(t, num_tokens=80), "6 blocks of 16 tokens end with token 80"),
        (
            lambda t: replace(t, num_blocks=7, num_tokens=100),
            "up to 96, for which there are blocks here",
        ),
        (lambda t: replace(t, block_tokens=0), "of 0 tokens"),
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
    with pytest.raises(error, match=named) as caught:
        await pair.begin_ready(change(ticket)).finish(TOKEN, finished=False)
    assert caught.value.phase is Phase.TRANSFER
    assert pair.target.untouched
    pair.cancel(ticket)


def test_frames_too_small_for_a_block_are_refused_at_start() -> None:
    shard = Side().memory(0).shard
    memory = ArrayKVMemory(SPEC, shard, num_blocks=1, block_tokens=1024)
    config = KVConfig(block_tokens=BLOCK_TOKENS, frame_bytes=1 << 12)
    with pytest.raises(ConfigError, match=r"kv\.frame_bytes is 4096; allowed: at least 65536"):
        KvSender(memory, ParallelLayout(), 0, {}, config, SystemClock(), fingerprint="model")
