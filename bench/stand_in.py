"""SIMULATED: workers as a router sees them, with engines that take no time and no KV to move.

Each speaks the deployed control stream over gRPC, and grants, prefills and steps as a replica does;
nothing behind that costs anything, so that the router in front is what is measured. Pushing no KV,
they live in one process, where a decode worker can be told that its prompt is filled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc.aio

from eastwest.decoding import RefuseMalformed
from eastwest.kv_events import KvEvents
from eastwest.layout import ParallelLayout
from eastwest.messages import (
    Abort,
    Command,
    FirstStep,
    Load,
    ModelInfo,
    Prefill,
    Prefilled,
    RankEndpoint,
    Reserve,
    Reserved,
    SequenceOutput,
    Stepped,
    Ticket,
    WorkerInfo,
)
from eastwest.rpc import CONTROL_MESSAGE_BYTES, server_options
from eastwest.types import FinishReason, Role, SampledToken
from kv_transfer.auditor import Audit
from runtime.control import ControlService

_BLOCKS, _BLOCK_TOKENS, _STEP_TOKENS, _RUNNING_MAX = 1 << 15, 16, 8192, 512
_FIRST_TOKEN, _TOKENS = 1000, 40_000
_NO_TIME = FirstStep(0, 0, 0, 0, 0)


@dataclass(slots=True)
class _Sequence:
    """One that a decode worker has made room for. left: tokens still to come."""

    router_id: str
    request_id: str
    left: int
    token: int
    told: bool = False


@dataclass(slots=True)
class StandIn:
    """One worker; `start` serves. Is a `CommandHandler`. step_s: how long a decode step takes.

    peers: all workers of the process, by their names.
    """

    worker_id: str
    role: Role
    model: ModelInfo
    peers: dict[str, StandIn]
    step_s: float = 0.0
    transfers_open: int = 0
    _control: ControlService = field(init=False)
    _server: grpc.aio.Server | None = None
    _address: str = ""
    _granted: dict[str, _Sequence] = field(default_factory=dict)
    _running: dict[str, _Sequence] = field(default_factory=dict)
    _stepping: bool = False

    def __post_init__(self) -> None:
        self.peers[self.worker_id] = self
        self._control = ControlService(self, self._info, heartbeat_s=1.0)

    async def start(self) -> str:
        """Returns the bound ``host:port``."""
        self._server = grpc.aio.server(
            interceptors=[RefuseMalformed()], options=server_options(CONTROL_MESSAGE_BYTES)
        )
        self._control.add_to(self._server)
        self._address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self._address

    async def stop(self) -> None:
        self._control.close()
        if self._server is not None:
            await self._server.stop(None)

    def _info(self) -> WorkerInfo:
        return WorkerInfo(
            self.worker_id, 1, self.role, self._address, self.model, ParallelLayout(),
            _BLOCK_TOKENS, _BLOCKS, _RUNNING_MAX, _STEP_TOKENS,
        )  # fmt: skip

    # CommandHandler.

    def handle(self, router_id: str, command: Command) -> None:
        """Everything is answered at once, but for steps."""
        match command:
            case Reserve():
                sequence = _Sequence(router_id, command.request_id, command.max_tokens, 0)
                self._granted[command.request_id] = sequence
                ticket = self._ticket(command)
                self._control.emit(router_id, Reserved(command.request_id, ticket, 0, 0))
            case Prefill():
                token = _FIRST_TOKEN + command.prompt[-1] % _TOKENS
                finish = FinishReason.LENGTH if command.max_tokens == 1 else None
                answer = Prefilled(
                    command.request_id, SampledToken(token), finish, 0, 0, len(command.prompt), 0
                )
                self._control.emit(router_id, answer)
                self.peers[command.ticket.worker_id].filled(command.request_id, token)
            case Abort():
                self._granted.pop(command.request_id, None)
                self._running.pop(command.request_id, None)

    def router_gone(self, router_id: str) -> None:
        for table in (self._granted, self._running):
            for name in [n for n, s in table.items() if s.router_id == router_id]:
                del table[name]

    def load(self) -> Load:
        running = len(self._running)
        return Load(_BLOCKS, 0, _BLOCKS, running, 0, 0, 0, 0, 0, 0, 0, store_available=False)

    def kv_events(self) -> Iterable[KvEvents]:
        return ()

    def kv_whole(self) -> Iterable[KvEvents]:
        return ()

    def audit(self) -> Audit:
        raise NotImplementedError

    # Decode.

    def filled(self, request_id: str, token: int) -> None:
        """The prompt of a granted sequence is computed, with the token behind it."""
        sequence = self._granted.pop(request_id, None)
        if sequence is None or sequence.left == 1:
            return
        sequence.token, sequence.left = token, sequence.left - 1
        self._running[request_id] = sequence
        if not self._stepping:
            self._stepping = True
            self._later()

    def _later(self) -> None:
        loop = asyncio.get_running_loop()
        if self.step_s:
            loop.call_later(self.step_s, self._step)
        else:
            loop.call_soon(self._step)

    def _step(self) -> None:
        """One token for each running sequence."""
        outputs: dict[str, list[SequenceOutput]] = {}
        for sequence in list(self._running.values()):
            sequence.left -= 1
            sequence.token = _FIRST_TOKEN + (sequence.token + 31) % _TOKENS
            finish = None if sequence.left else FinishReason.LENGTH
            first = None if sequence.told else _NO_TIME
            output = SequenceOutput(
                sequence.request_id, (SampledToken(sequence.token),), finish, first
            )
            sequence.told = True
            outputs.setdefault(sequence.router_id, []).append(output)
            if finish is not None:
                del self._running[sequence.request_id]
        for router_id, of_router in outputs.items():
            self._control.emit(router_id, Stepped(tuple(of_router)))
        self._stepping = bool(self._running)
        if self._stepping:
            self._later()

    def _ticket(self, command: Reserve) -> Ticket:
        tokens = len(command.prompt) + command.max_tokens
        return Ticket(
            transfer_id=command.request_id,
            worker_id=self.worker_id,
            epoch=1,
            address=self._address,
            endpoints=(RankEndpoint(0, self._address),),
            layout=ParallelLayout(),
            kv=self.model.kv,
            fingerprint=self.model.fingerprint,
            block_tokens=_BLOCK_TOKENS,
            first_block=0,
            num_blocks=-(-tokens // _BLOCK_TOKENS),
            num_tokens=len(command.prompt),
            lease_s=30.0,
        )
