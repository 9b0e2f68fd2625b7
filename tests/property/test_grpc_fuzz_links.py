"""A router whose workers say anything; see `grpc_fuzz`. What a worker that was believed says of a
request is the client's answer: here a client need only get one, and never UNKNOWN."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest import wire
from eastwest.errors import EastWestError
from eastwest.testing.builders import a_ticket, a_worker
from eastwest.testing.engine import simulated_model
from eastwest.types import Role
from eastwest.v1 import worker_pb2
from tests.property.absurd import Known, absurd, mangled, noise
from tests.property.grpc_fuzz import Site, a_site, profiles
from tests.rig import WAIT_S, a_config, a_rig

EVIL = "evil"
# Stands for the request that the worker was last told of.
REQUEST = "?"
INFO = replace(
    a_worker(EVIL, Role.AGGREGATED, model=simulated_model(), num_blocks=4096), block_tokens=8
)
KNOWN: Known = {
    "request_id": st.just(REQUEST),
    "epoch": st.just(INFO.epoch),
    "worker_id": st.just(EVIL),
    "role": st.sampled_from(list(Role)),
    "code": st.sampled_from(["unavailable", "overloaded", "internal", "invalid_argument"]),
    "phase": st.sampled_from(["queue", "decode"]),
    "tier": st.sampled_from(["device", "host", "external"]),
    "cleared": st.sampled_from(["device", "host", "external"]),
    "hashes": st.binary(min_size=16, max_size=16),
    "fingerprint": st.just(INFO.model.fingerprint),
    "dtype": st.just("float32"),
    "transport": st.just("grpc"),
    "token": st.integers(0, 511),
    "finish": st.integers(0, 2),
    "block_tokens": st.just(8),
    "sequence": st.integers(0, 3),
}


@dataclass(frozen=True, slots=True)
class Manners:
    """greeting: the answer to Hello. answers: one to each command that comes. hangs_up: then."""

    greeting: Message | bytes
    answers: tuple[Message | bytes, ...]
    hangs_up: bool


@st.composite
def manners(draw: st.DrawFn) -> Manners:
    welcome = worker_pb2.WorkerMessage(welcome=wire.welcome_to_wire(INFO))
    greeting: Message | bytes = welcome
    match draw(st.integers(0, 5)):
        case 0:
            greeting = draw(noise(welcome))
        case 1:
            greeting = draw(mangled(welcome, KNOWN))
        case 2:
            greeting = draw(absurd(worker_pb2.WorkerMessage, KNOWN))
    answers = tuple(draw(st.lists(_answers(), max_size=6)))
    return Manners(greeting, answers, draw(st.booleans()))


@st.composite
def _answers(draw: st.DrawFn) -> Message | bytes:
    good = _honest(draw(st.lists(st.sampled_from("rpslfk"), min_size=1, max_size=3)))
    match draw(st.integers(0, 7)):
        case 0:
            return draw(noise(good))
        case 1:
            return draw(absurd(worker_pb2.WorkerMessage, KNOWN))
        case 2 | 3 | 4:
            return draw(mangled(good, KNOWN))
        case _:
            return good


def _honest(kinds: list[str]) -> worker_pb2.WorkerMessage:
    ticket = wire.ticket_to_wire(a_ticket(INFO, transfer_id="t", tokens=15, lease_s=30.0))
    words: dict[str, dict[str, Any]] = {
        "r": {"reserved": {"request_id": REQUEST, "ticket": ticket}},
        "p": {"prefilled": {"request_id": REQUEST, "token": {"token": 5}, "computed_tokens": 15}},
        "s": {"stepped": {"outputs": [{"request_id": REQUEST, "tokens": [{"token": 6}] * 2}]}},
        "l": {"load": {"free_blocks": 4096, "num_blocks": 4096}},
        "f": {"failed": {"request_id": REQUEST, "code": "unavailable", "phase": "decode"}},
        "k": {"kv": {"sequence": 1, "stored": [{"tier": "device", "hashes": bytes(32)}]}},
    }
    events = [worker_pb2.Event(**words[kind]) for kind in kinds]
    return worker_pb2.WorkerMessage(events={"epoch": INFO.epoch, "events": events})


class EvilWorker:
    """Serves `Worker.Control` as bytes."""

    def __init__(self) -> None:
        self.manners = Manners(b"", (), True)
        self.greeted = asyncio.Event()
        self._server = grpc.aio.server()
        handler: Any = grpc.stream_stream_rpc_method_handler(self._control)
        service = grpc.method_handlers_generic_handler("eastwest.v1.Worker", {"Control": handler})
        self._server.add_generic_rpc_handlers((service,))

    async def start(self) -> str:
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _control(
        self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        manners, request_id = self.manners, "r"
        await anext(aiter(messages))
        await context.write(_sent(manners.greeting, request_id))
        self.greeted.set()
        answers = iter(manners.answers)
        async for data in messages:
            for command in worker_pb2.RouterMessage.FromString(data).commands.commands:
                request_id = command.reserve.request_id or command.prefill.request_id or request_id
                answer = next(answers, None)
                if answer is not None:
                    await context.write(_sent(answer, request_id))
                elif manners.hangs_up:
                    return


def _sent(message: Message | bytes, request_id: str) -> bytes:
    if isinstance(message, bytes):
        return message
    copy = type(message)()
    copy.CopyFrom(message)
    _name(copy, request_id)
    return copy.SerializeToString()


def _name(message: Message, request_id: str) -> None:
    for field, value in message.ListFields():
        if field.name == "request_id" and value == REQUEST:
            setattr(message, field.name, request_id)
        elif field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                _name(child, request_id)


async def ask(site: Site) -> None:
    """A client's call, of which nothing is expected but an end."""
    with suppress(EastWestError):
        await site.rig.client.generate([7, 8, 9] * 5, temperature=0.0, max_tokens=3, timeout_s=0.3)


@profiles(80)
def test_a_router_survives_any_worker(tiny_model_dir: Path, profile: settings) -> None:
    config = a_config(router={"heartbeat_s": 0.02, "policy": "round_robin", "attempts_max": 2})
    with a_site(lambda: a_rig(tiny_model_dir, config=config)) as site:
        evil = site.run(_begun())
        address = site.run(evil.start())

        @given(manners())
        @profile
        def believe(manners: Manners) -> None:
            async def batch() -> None:
                evil.manners = manners
                evil.greeted.clear()
                site.rig.router.add_worker(EVIL, address)
                async with asyncio.timeout(WAIT_S):
                    await evil.greeted.wait()
                await asyncio.gather(ask(site), ask(site))
                assert (await site.rig.client.server_info()).workers
                assert (await site.rig.client.loads()).active == 0
                await site.rig.client.model_info()
                await site.rig.router.remove_worker(EVIL)
                await site.check()

            site.run(batch())

        try:
            believe()
        finally:
            site.run(evil.stop())


async def _begun() -> EvilWorker:
    return EvilWorker()
