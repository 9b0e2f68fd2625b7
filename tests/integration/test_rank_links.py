"""The link between a leader and its ranks: who may lead, what ends it, and blocks across it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from eastwest.clock import SystemClock
from eastwest.config import KVConfig
from eastwest.errors import EastWestError, Incompatible, InvalidArgument, StaleEpoch, Unavailable
from eastwest.layout import ParallelLayout
from eastwest.messages import PROTOCOL_VERSION
from eastwest.rpc import error_from_rpc
from eastwest.testing.engine import simulated_group
from eastwest.v1 import rank_pb2 as wire
from eastwest.v1 import rank_pb2_grpc
from eastwest.wire import layout_to_wire
from runtime.rank import Rank, Ways
from runtime.rank_group import form_group
from runtime.rank_service import Place, RankServer
from tests.rank_groups import LocalGroup, local_group

WAIT_S = 20.0
PAIR = ParallelLayout(tp=2)


def a_join(**changes: object) -> wire.RankCommand:
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "worker_id": "w",
        "epoch": 1,
        "rank": 1,
        "layout": layout_to_wire(PAIR),
        **changes,
    }
    return wire.RankCommand(join=wire.Join(**fields))  # type: ignore[arg-type]


@asynccontextmanager
async def a_rank(*, silence_s: float = WAIT_S) -> AsyncIterator[tuple[RankServer, str]]:
    """Rank 1 of a pair, whose leader has not come yet."""
    engines = simulated_group(PAIR, 16, 8)

    async def build(place: Place) -> Rank:
        return Rank(engines[place.rank], Ways(), place.epoch, KVConfig(), SystemClock())

    server = RankServer("127.0.0.1", build, silence_s=silence_s)
    try:
        yield server, await server.start()
    finally:
        await server.stop()


@asynccontextmanager
async def a_leader(address: str) -> AsyncIterator[grpc.aio.StreamStreamCall]:  # type: ignore[type-arg]
    """A raw stream to a rank."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield rank_pb2_grpc.RankStub(channel).Run()  # type: ignore[no-untyped-call]


async def last_answer(stream: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
    """Read on until the link ends; raises what it ended with."""
    while await answer(stream) is not grpc.aio.EOF:
        pass


async def answer(stream: grpc.aio.StreamStreamCall) -> object:  # type: ignore[type-arg]
    try:
        async with asyncio.timeout(WAIT_S):
            return await stream.read()
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        (wire.RankCommand(), InvalidArgument, "must be join"),
        (wire.RankCommand(alive=wire.Alive()), InvalidArgument, "must be join"),
        (a_join(protocol_version=99), Incompatible, "speaks protocol version 99; allowed"),
        (a_join(rank=2), InvalidArgument, "rank is 2; allowed: 0 to 1"),
        (a_join(rank=0), InvalidArgument, "but for the leader, 0"),
        (a_join(layout=None), InvalidArgument, "allowed: tp, pp, ep, dp from 1"),
    ],
)
async def test_who_cannot_lead_is_told_why_and_another_may(
    command: wire.RankCommand, error: type[EastWestError], message: str
) -> None:
    async with a_rank() as (server, address):
        async with a_leader(address) as stream:
            await stream.write(command)
            with pytest.raises(error, match=message):
                await answer(stream)
        assert not server.ended.is_set()
        async with a_leader(address) as stream:
            await stream.write(a_join())
            joined = await answer(stream)
            assert isinstance(joined, wire.RankEvent)
            assert joined.joined.num_blocks == 16


async def test_a_rank_has_one_leader_in_its_life() -> None:
    async with a_rank() as (server, address):
        async with a_leader(address) as first, a_leader(address) as second:
            await first.write(a_join())
            await answer(first)
            await second.write(a_join(epoch=2))
            with pytest.raises(StaleEpoch, match="belongs to another leader"):
                await answer(second)
            assert not server.ended.is_set()
        async with asyncio.timeout(WAIT_S):
            await server.ended.wait()


async def test_a_rank_whose_leader_falls_silent_ends_itself() -> None:
    async with a_rank(silence_s=0.1) as (server, address), a_leader(address) as stream:
        await stream.write(a_join())
        await answer(stream)
        async with asyncio.timeout(WAIT_S):
            await server.ended.wait()


async def test_an_empty_command_ends_the_link() -> None:
    async with a_rank() as (server, address), a_leader(address) as stream:
        await stream.write(a_join())
        await answer(stream)
        await stream.write(wire.RankCommand())
        async with asyncio.timeout(WAIT_S):
            await server.ended.wait()


@pytest.mark.parametrize(
    "command",
    [
        {"step": {"rows": [{"tokens": [1], "blocks": [99]}]}},
        {"open": {"transfer_id": "t", "num_blocks": 9, "transport": "grpc"}},
        {"read": {"blocks": [16]}},
        {"write": {"blocks": [1], "payloads": [b"short"]}},
        {"begin": {"timeout_s": 1e300}},
    ],
)
async def test_what_a_rank_cannot_do_ends_the_link_with_the_reason(command: Any) -> None:
    async with a_rank() as (server, address), a_leader(address) as stream:
        await stream.write(a_join())
        await answer(stream)
        await stream.write(wire.RankCommand(call=1, **command))
        with pytest.raises(InvalidArgument, match=r"allowed|outside"):
            await last_answer(stream)
        async with asyncio.timeout(WAIT_S):
            await server.ended.wait()


async def test_a_transfer_is_opened_once() -> None:
    opening = wire.OpenTransfer(
        transfer_id="t", blocks=[1], num_blocks=1, num_tokens=8, transport="grpc"
    )
    async with a_rank() as (_, address), a_leader(address) as stream:
        await stream.write(a_join())
        await answer(stream)
        for _ in range(2):
            await stream.write(wire.RankCommand(open=opening))
        with pytest.raises(InvalidArgument, match="'t' was opened before; allowed: once"):
            await last_answer(stream)


async def test_ranks_that_do_not_match_make_no_group() -> None:
    engines = simulated_group(PAIR, 16, 8)
    engines[1] = simulated_group(PAIR, 8, 8)[1]
    with pytest.raises(Incompatible, match="rank 1 has model, blocks and block size"):
        await local_group(engines)


async def test_a_rank_that_cannot_load_fails_the_group_with_its_reason() -> None:
    async def build(place: Place) -> Rank:
        raise InvalidArgument("no such checkpoint here")

    engines = simulated_group(PAIR, 16, 8)
    server = RankServer("127.0.0.1", build, silence_s=WAIT_S)
    place = Place("w", 1, 0, PAIR, "")

    async def load() -> Rank:
        return Rank(engines[0], Ways(), 1, KVConfig(), SystemClock())

    address = await server.start()
    with pytest.raises(InvalidArgument, match="no such checkpoint here"):
        await form_group(load(), [address], place, silence_s=WAIT_S)
    assert engines[0].closed
    await server.stop()


async def test_blocks_are_put_together_from_the_shards_of_all_ranks() -> None:
    whole = simulated_group(ParallelLayout(), 4, 8)[0].kv
    whole.fill(3)
    layers, heads = whole.shard.layers, whole.shard.heads
    payloads = [whole.read([b], layers, heads) for b in range(4)]
    for layout in (ParallelLayout(tp=2, pp=3), ParallelLayout(tp=4), ParallelLayout(pp=2, dp=2)):
        local = await local_group(simulated_group(layout, 16, 8))
        try:
            first = 16 * (layout.dp - 1)
            blocks = [first + b for b in (9, 3, 4, 0)]
            await local.group.kv.write(blocks, payloads)
            assert list(map(bytes, await local.group.kv.read(blocks))) == list(map(bytes, payloads))
        finally:
            await end(local)


async def test_a_group_that_loses_a_rank_says_so_and_answers_nothing_more() -> None:
    local = await local_group(simulated_group(PAIR, 16, 8))
    await local.servers[1].stop()
    async with asyncio.timeout(WAIT_S):
        await local.group.breakage.event.wait()
    assert "rank 1 is lost" in local.group.breakage.reason
    with pytest.raises(Unavailable, match="rank 1 is lost"):
        await local.group.settled()
    await end(local)


async def end(local: LocalGroup) -> None:
    await local.group.close()
    await local.stop_servers()
