"""A rank against leaders that say anything; see `grpc_fuzz`. A rank serves one leader, once: each
example has a rank of its own."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.clock import SystemClock
from eastwest.config import KVConfig
from eastwest.layout import ParallelLayout
from eastwest.messages import PROTOCOL_VERSION
from eastwest.testing.builders import a_ticket, a_worker
from eastwest.testing.engine import SimulatedEngine, simulated_model
from eastwest.types import Role
from eastwest.v1 import rank_pb2
from eastwest.wire import layout_to_wire, ticket_to_wire
from runtime.rank import Rank, Ways
from runtime.rank_service import Place, RankServer
from tests.property.absurd import Known, absurd, mangled, noise
from tests.property.grpc_fuzz import Complaints, RawStream, profiles
from tests.rig import WAIT_S

RUN = "/eastwest.v1.Rank/Run"
BLOCKS, BLOCK_TOKENS = 16, 8
PAIR = ParallelLayout(tp=2)
JOIN = rank_pb2.RankCommand(
    join=rank_pb2.Join(
        protocol_version=PROTOCOL_VERSION,
        worker_id="w",
        epoch=1,
        rank=1,
        layout=layout_to_wire(PAIR),
    )
)
KNOWN: Known = {
    "transfer_id": st.sampled_from(["t", "u"]),
    "call": st.integers(0, 9),
    "blocks": st.integers(0, BLOCKS - 1),
    "tokens": st.integers(0, 511),
    "start": st.integers(0, 9),
    "transport": st.just("grpc"),
    "dtype": st.just("float32"),
    "timeout_s": st.just(5.0),
    "protocol_version": st.just(PROTOCOL_VERSION),
    "rank": st.integers(0, 2),
    "tp": st.just(2), "pp": st.just(1), "ep": st.just(1), "dp": st.just(1),
}  # fmt: skip


def _good() -> list[rank_pb2.RankCommand]:
    peer = a_worker("d0", Role.DECODE, model=simulated_model(), num_blocks=BLOCKS)
    ticket = ticket_to_wire(a_ticket(peer, transfer_id="t", tokens=15, lease_s=30.0))
    ticket.fingerprint = simulated_model().fingerprint
    row = {"tokens": [1, 2, 3], "start": 0, "blocks": [3], "samples": True}
    opening = {"blocks": [1, 2], "num_blocks": 2, "num_tokens": 15, "transport": "grpc"}
    region = {"layer_count": 3, "block_count": 2, "head_count": 2}
    words: list[dict[str, object]] = [
        {"step": {"rows": [row]}},
        {"open": {"transfer_id": "t", **opening}},
        {"open": {"transfer_id": "u", **opening, "blocks": [4, 5]}},
        {"close": {"transfer_id": "t", "reason": "not_found"}},
        {"missing": {"transfer_id": "t"}},
        {"begin": {"ticket": ticket, "blocks": [6, 7], "timeout_s": 5.0}},
        {"ready": {"transfer_id": "t", "tokens": 15}},
        {"drain": {"transfer_id": "t"}},
        {"resend": {"transfer_id": "t", "missing": [region]}},
        {"stop": {"transfer_id": "t"}},
        {"read": {"blocks": [1, 2]}},
        {"write": {"blocks": [1], "payloads": [bytes(8 * 3 * 6 * 4)]}},
        {"alive": {}},
    ]
    return [rank_pb2.RankCommand(call=n, **word) for n, word in enumerate(words)]  # type: ignore[arg-type]


GOOD = _good()


@dataclass(frozen=True, slots=True)
class Plan:
    """said: to the rank, in order; reads: whether answers are read."""

    said: tuple[Message | bytes, ...]
    reads: bool
    cut: bool


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    greeting: Message | bytes = JOIN
    match draw(st.integers(0, 7)):
        case 0:
            greeting = draw(noise(JOIN))
        case 1:
            greeting = draw(mangled(JOIN, KNOWN))
    good = st.sampled_from(GOOD)
    words = st.one_of(
        good,
        good,
        good.flatmap(lambda command: mangled(command, KNOWN)),
        good.flatmap(lambda command: mangled(command, KNOWN)),
        absurd(rank_pb2.RankCommand, KNOWN),
        noise(*GOOD),
    )
    said = draw(st.lists(words, max_size=8))
    return Plan((greeting, *said), draw(st.booleans()), draw(st.booleans()))


async def lead(plan: Plan) -> None:
    """A rank from its start to its end, which it must come to by itself."""

    async def build(place: Place) -> Rank:
        engine = SimulatedEngine(BLOCKS, BLOCK_TOKENS)
        return Rank(engine, Ways(), place.epoch, KVConfig(), SystemClock())

    server = RankServer("127.0.0.1", build, silence_s=WAIT_S)
    try:
        async with grpc.aio.insecure_channel(await server.start()) as channel:
            stream = RawStream(channel.stream_stream(RUN)())
            for word in plan.said:
                await stream.write(word)
                if plan.reads and stream.open and word is JOIN:
                    await stream.read()
            await stream.close(cut=plan.cut)
    finally:
        await server.stop()
    async with asyncio.timeout(WAIT_S):
        await server.ended.wait()


@profiles(200)
def test_a_rank_survives_any_leader(profile: settings) -> None:
    complaints, runner = Complaints(), asyncio.Runner()
    logging.getLogger().addHandler(complaints)

    @given(plans())
    @profile
    def rule(plan: Plan) -> None:
        runner.run(lead(plan))
        assert not complaints.lines, complaints.lines

    try:
        with runner:
            rule()
    finally:
        logging.getLogger().removeHandler(complaints)
