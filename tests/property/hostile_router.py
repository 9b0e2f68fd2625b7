"""A hostile router, and sender of KV: what it will do is drawn beforehand, and then done.

In what is drawn, the transfer id `TICKET` stands for the ticket that was last given to this
router: fields of a ticket that are set beside it are put in the real one's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc.aio
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st

from eastwest import wire
from eastwest.messages import PROTOCOL_VERSION, KvSource, Reserve, WorkerInfo
from eastwest.types import SamplingParams
from eastwest.v1 import kv_blocks_pb2, kv_transfer_pb2, worker_pb2
from eastwest.wire.workers import kv_spec_to_wire, source_to_wire
from kv_transfer.frame_codec import Header, encode
from kv_transfer.plan import Region, tokens_of
from tests.integration.test_serving import a_prompt
from tests.property.absurd import Known, absurd, mangled, noise
from tests.property.grpc_fuzz import RawStream, Site, ended, unary
from tests.rig import WAIT_S

CONTROL = "/eastwest.v1.Worker/Control"
COMMIT = "/eastwest.v1.KvTransfer/Commit"
ABORT = "/eastwest.v1.KvTransfer/AbortTransfer"
PUSH = "/eastwest.v1.KvTransfer/Push"
MATCH = "/eastwest.v1.KvBlocks/Match"

TICKET = "?"
SALT = "hostile"  # its KV may be nonsense, and must not be anybody else's
ROUTERS = ("hostile", "rude")
IDS = ("a", "b", "c")
GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Say:
    """To the control stream."""

    message: Message | bytes


@dataclass(frozen=True, slots=True)
class Listen:
    """Until the worker tells its load."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Of the transfer service, where the ticket says; or what blocks there are."""

    method: str
    message: Message | bytes


@dataclass(frozen=True, slots=True)
class Push:
    """Frames for the ticket's transfer: all of its KV in one, but for `changes` of the header.

    payload: bytes more, or less, than the header's. noise: sent in place of the frame. times:
    how often. leader: to the gRPC server, not to the rank's own.
    """

    changes: tuple[tuple[str, int | str], ...]
    payload: int
    noise: bytes | None
    times: int
    leader: bool
    cut: bool


Move = Say | Listen | Ask | Push


@dataclass(frozen=True, slots=True)
class Plan:
    """cut: the stream is cancelled, not ended."""

    worker: WorkerInfo
    moves: tuple[Move, ...]
    cut: bool


def known_values(worker: WorkerInfo) -> Known:
    """Fields by which a message gets past the first checks."""
    one = st.just(1)
    return {
        "router_id": st.sampled_from(ROUTERS),
        "protocol_version": st.just(PROTOCOL_VERSION),
        "epoch": st.just(worker.epoch),
        "request_id": st.sampled_from(IDS),
        "transfer_id": st.sampled_from([TICKET, TICKET, "decode-0.1", "nobody.1"]),
        "prompt": st.integers(1, 511),
        "max_tokens": st.integers(1, 9),
        "timeout_s": st.just(30.0),
        "worker_id": st.just(worker.worker_id),
        "fingerprint": st.just(worker.model.fingerprint),
        "transport": st.just("grpc"),
        "transports": st.just("grpc"),
        "salt": st.just(SALT),
        "token": st.integers(0, 511),
        "dtype": st.just("float32"),
        "block_tokens": st.just(worker.block_tokens),
        "tp": one, "pp": one, "ep": one, "dp": one,
    }  # fmt: skip


@st.composite
def plans(draw: st.DrawFn, workers: Sequence[WorkerInfo]) -> Plan:
    worker = draw(st.sampled_from(workers))
    known, sources = known_values(worker), [w.source() for w in workers]
    hello = worker_pb2.RouterMessage(
        hello=worker_pb2.Hello(
            router_id=draw(st.sampled_from(ROUTERS)), protocol_version=PROTOCOL_VERSION
        )
    )
    greeting: Message | bytes = hello
    match draw(st.integers(0, 11)):
        case 0:
            greeting = draw(noise(hello))
        case 1:
            greeting = draw(mangled(hello, known))
        case 2:
            greeting = draw(_commands(worker, sources))
    moves = st.one_of(
        _said(worker, sources, known).filter(_lets_them_serve),
        st.just(Listen()),
        _asked(worker, known),
        _pushed(worker),
    )
    more = draw(st.lists(moves, max_size=8))
    return Plan(worker, (Say(greeting), *more), draw(st.booleans()))


def _lets_them_serve(say: Say) -> bool:
    """Any router may make workers leave; where all do, nobody is left to ask."""
    message = say.message
    if isinstance(message, bytes):
        try:
            message = worker_pb2.RouterMessage.FromString(message)
        except DecodeError:
            return True
    commands = getattr(message, "commands", None)
    return commands is None or not any(c.HasField("drain") for c in commands.commands)


@st.composite
def _said(draw: st.DrawFn, worker: WorkerInfo, sources: Sequence[KvSource], known: Known) -> Say:
    good = draw(_commands(worker, sources))
    match draw(st.integers(0, 9)):
        case 0:
            return Say(draw(noise(good)))
        case 1:
            return Say(draw(absurd(worker_pb2.RouterMessage, known)))
        case 2 | 3 | 4:
            return Say(draw(mangled(good, known)))
        case _:
            return Say(good)


@st.composite
def _commands(
    draw: st.DrawFn, worker: WorkerInfo, sources: Sequence[KvSource]
) -> worker_pb2.RouterMessage:
    """Good ones, if they came in another order."""
    commands = []
    for kind in draw(st.lists(st.sampled_from("rrrpppahk"), min_size=1, max_size=3)):
        match kind:
            case "r" | "p":
                reserve = draw(_reserve(sources))
                command = wire.command_to_wire(reserve)
                if kind == "p":
                    lenders = [None, *map(source_to_wire, sources)]
                    prefill = _prefill(command.reserve, draw(st.sampled_from(lenders)))
                    command = worker_pb2.Command(prefill=prefill)
            case "a":
                command = worker_pb2.Command(abort={"request_id": draw(st.sampled_from(IDS))})
            case "k":
                command = worker_pb2.Command(resync_kv={})
            case _:
                command = worker_pb2.Command(heartbeat={})
        commands.append(command)
    return worker_pb2.RouterMessage(commands={"epoch": worker.epoch, "commands": commands})


@st.composite
def _reserve(draw: st.DrawFn, sources: Sequence[KvSource]) -> Reserve:
    return Reserve(
        request_id=draw(st.sampled_from(IDS)),
        salt=SALT,
        session_id=draw(st.sampled_from(["", "s"])),
        prompt=tuple(a_prompt(draw(st.sampled_from([1, 8, 20, 100])))),
        sampling=GREEDY,
        max_tokens=draw(st.sampled_from([1, 4, 40])),
        source=draw(st.sampled_from(sources)),
        timeout_s=30.0,
        output=draw(st.sampled_from([(), (1, 2)])),
    )


def _prefill(
    reserve: worker_pb2.Reserve, lender: worker_pb2.KvSource | None = None
) -> worker_pb2.Prefill:
    return worker_pb2.Prefill(
        request_id=reserve.request_id, salt=reserve.salt, prompt=reserve.prompt,
        sampling=reserve.sampling, max_tokens=reserve.max_tokens, timeout_s=reserve.timeout_s,
        output=reserve.output, ticket=worker_pb2.Ticket(transfer_id=TICKET), lender=lender,
    )  # fmt: skip


@st.composite
def _asked(draw: st.DrawFn, worker: WorkerInfo, known: Known) -> Ask:
    good: Message = kv_transfer_pb2.CommitRequest(
        transfer_id=TICKET,
        epoch=worker.epoch,
        first_token=worker_pb2.SampledToken(token=3),
        finished=draw(st.booleans()),
    )
    method = COMMIT
    match draw(st.integers(0, 4)):
        case 0:
            good = kv_transfer_pb2.AbortTransferRequest(transfer_id=TICKET, epoch=worker.epoch)
            method = ABORT
        case 1:
            method, good = MATCH, kv_blocks_pb2.BlockChain(
                epoch=worker.epoch, fingerprint=worker.model.fingerprint,
                kv=kv_spec_to_wire(worker.model.kv), block_tokens=worker.block_tokens,
                hashes=bytes(32),
            )  # fmt: skip
    match draw(st.integers(0, 5)):
        case 0:
            return Ask(method, draw(noise(good)))
        case 1:
            return Ask(method, draw(absurd(type(good), known)))
        case 2 | 3:
            return Ask(method, draw(mangled(good, known)))
        case _:
            return Ask(method, good)


_NUMBERS = (
    "epoch", "source_rank", "layer_start", "layer_count", "block_start", "block_count",
    "head_start", "head_count",
)  # fmt: skip


@st.composite
def _pushed(draw: st.DrawFn, worker: WorkerInfo) -> Push:
    number = st.tuples(st.sampled_from(_NUMBERS), st.sampled_from([0, 1, 2, 3, 99, (1 << 32) - 1]))
    name = st.tuples(st.just("transfer_id"), st.sampled_from(["", "nobody", "x" * 2000]))
    spoilt = draw(st.integers(0, 1))
    return Push(
        changes=tuple(draw(st.lists(number | name, max_size=2)) if spoilt else ()),
        payload=draw(st.sampled_from([0, 0, 0, 1, -1, -10_000])),
        noise=draw(st.binary(max_size=100)) if draw(st.integers(0, 5)) == 0 else None,
        times=draw(st.sampled_from([1, 1, 2, 70])),
        leader=draw(st.booleans()),
        cut=draw(st.booleans()),
    )


class HostileRouter:
    """Carries out a plan."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self._site = site
        self._plan = plan
        self._ticket: worker_pb2.Ticket | None = None
        channel = site.channel(plan.worker.address)
        self._stream = RawStream(channel.stream_stream(CONTROL)())

    async def act(self) -> None:
        for move in self._plan.moves:
            match move:
                case Say(message):
                    await self._stream.write(self._real(message))
                case Listen():
                    await self._listen()
                case Ask(method, message):
                    channel = self._site.channel(self._plan.worker.address)
                    await unary(channel, method, self._real(message))
                case Push():
                    await self._push(move)
        await self._stream.close(cut=self._plan.cut)

    async def _listen(self) -> None:
        for _ in range(8):
            data = await self._stream.read()
            if data is None:
                return
            message = worker_pb2.WorkerMessage.FromString(data)
            for event in message.events.events:
                if event.HasField("reserved"):
                    self._ticket = event.reserved.ticket
                elif event.HasField("load"):
                    return

    def _real(self, message: Message | bytes) -> bytes:
        """The message as it is sent."""
        if isinstance(message, bytes):
            return message
        copy = type(message)()
        copy.CopyFrom(message)
        if self._ticket is not None:
            _fill_in(copy, self._ticket)
        return copy.SerializeToString()

    async def _push(self, push: Push) -> None:
        ticket = self._ticket
        frame, address = push.noise, self._plan.worker.address
        if frame is None:
            if ticket is None:
                return
            frame = _frame(ticket, push, self._plan.worker)
        if ticket is not None and not push.leader:
            address = ticket.endpoints[0].address
        call = RawStream(self._site.channel(address).stream_unary(PUSH)())
        for _ in range(push.times):
            await call.write(frame)
        await _receipt(call, cut=push.cut)


async def _receipt(stream: RawStream, *, cut: bool) -> None:
    """End a push."""
    if cut:
        stream.call.cancel()
        return
    try:
        async with asyncio.timeout(WAIT_S):
            await stream.call.done_writing()
            await stream.call
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    await ended(stream.call)


def _frame(ticket: worker_pb2.Ticket, push: Push, worker: WorkerInfo) -> bytes:
    fields: dict[str, int | str] = {
        "transfer_id": ticket.transfer_id, "epoch": ticket.epoch, "source_rank": 0,
        "layer_start": 0, "layer_count": worker.model.kv.num_layers,
        "block_start": ticket.first_block, "block_count": ticket.num_blocks - ticket.first_block,
        "head_start": 0, "head_count": worker.model.kv.num_kv_heads,
        **dict(push.changes),
    }  # fmt: skip
    blocks = range(ticket.first_block, ticket.num_blocks)
    tokens = tokens_of(blocks, ticket.block_tokens, ticket.num_tokens)
    size = worker.model.kv.slice_bytes(
        len(tokens), worker.model.kv.num_layers, worker.model.kv.num_kv_heads
    )
    numbers = [int(fields[name]) for name in _NUMBERS]
    epoch, rank, layer, layers, block, count, head, heads = numbers
    region = Region(
        range(layer, layer + layers), range(block, block + count), range(head, head + heads)
    )
    name = str(fields["transfer_id"])[:900]
    return encode(Header(name, epoch, rank, region), bytes(max(0, size + push.payload)))


def _fill_in(message: Message, ticket: worker_pb2.Ticket) -> None:
    """Put the ticket in the place of every `TICKET`."""
    if isinstance(message, worker_pb2.Ticket) and message.transfer_id == TICKET:
        changes = worker_pb2.Ticket()
        changes.CopyFrom(message)
        changes.ClearField("transfer_id")
        message.CopyFrom(ticket)
        for field, _ in changes.ListFields():
            message.ClearField(field.name)
        message.MergeFrom(changes)
        return
    for field, value in message.ListFields():
        if field.name == "transfer_id" and value == TICKET:
            setattr(message, field.name, ticket.transfer_id)
        elif field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                _fill_in(child, ticket)
