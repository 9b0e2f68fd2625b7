"""A SIMULATED worker in virtual time: it answers commands with events, and computes nothing.

It serves as the other side of a router in tests. Delays, refusals and failures are drawn from an
injected random source, so a seed reproduces a run. A prompt's first token says how many tokens
its output has. Each token depends on all tokens before it and, where it is sampled, on seed and
position (`token_after`), so that a lost, repeated or misplaced one shows in all that follow.
"""

from __future__ import annotations

import heapq
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from xxhash import xxh3_64_intdigest

from eastwest.blocks import blocks_for
from eastwest.errors import ErrorCode, Phase
from eastwest.messages import (
    Abort,
    Command,
    Dismiss,
    Drain,
    Drained,
    Erase,
    Event,
    Failed,
    FirstStep,
    Heartbeat,
    Load,
    Prefill,
    Prefilled,
    Reserve,
    Reserved,
    SequenceOutput,
    StepBudget,
    Stepped,
    Ticket,
    Undrain,
    WorkerInfo,
)
from eastwest.testing.builders import a_load, a_ticket
from eastwest.types import FinishReason, SampledToken, SamplingParams

STEP_NS = 10_000_000
LOAD_NS = 500_000_000
SETTLE_NS_MAX = 300_000_000
GRACE_NS = 2_000_000_000
PREFILL_NS_MAX = 200_000_000
LEASE_S = 5.0
VOCAB = 49152


class Agenda:
    """Virtual time: what is to happen, by time and then by order of asking."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._asked = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []

    def at(self, when_ns: int, act: Callable[[], None]) -> None:
        self._asked += 1
        heapq.heappush(self._heap, (max(when_ns, self.now_ns), self._asked, act))

    def after(self, delay_ns: int, act: Callable[[], None]) -> None:
        self.at(self.now_ns + delay_ns, act)

    def run_until(self, when_ns: int) -> None:
        """Do all that is due until then."""
        while self._heap and self._heap[0][0] <= when_ns:
            self.now_ns, _, act = heapq.heappop(self._heap)
            act()
        self.now_ns = when_ns


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, each of one answer or step going wrong."""

    refuse: float = 0.0
    fail: float = 0.0
    codes: tuple[ErrorCode, ...] = (ErrorCode.TRANSFER_FAILED,)


class Surroundings(Protocol):
    """What lies around a simulated worker."""

    def emit(self, worker: SimulatedWorker, event: Event) -> None:
        """Put an event on the worker's stream to the router."""

    def commit(self, ticket: Ticket, token: SampledToken, finished: bool) -> bool:
        """The KV of a prompt has arrived at the ticket's worker; False where that refuses it."""

    def left(self, worker: SimulatedWorker) -> None:
        """The worker has drained, and is gone."""


@dataclass(slots=True)
class Sequence:
    """What a worker holds for one reservation."""

    command: Reserve
    blocks: int
    output: list[int] = field(default_factory=list)
    steps: int = 0
    arrived_ns: int | None = None


def finish_of(prompt: tuple[int, ...], max_tokens: int, tokens: int) -> FinishReason | None:
    """Whether an output of `tokens` tokens is complete."""
    if tokens >= prompt[0]:
        return FinishReason.STOP
    return FinishReason.LENGTH if tokens >= max_tokens else None


def token_after(prompt: tuple[int, ...], output: list[int], sampling: SamplingParams) -> int:
    """What the simulated model says next."""
    seed = 0 if sampling.greedy else (sampling.seed or 0) * 1009 + len(output) + 1
    return xxh3_64_intdigest(array("Q", (*prompt, *output)).tobytes(), seed) % VOCAB


def simulated_output(
    prompt: tuple[int, ...], max_tokens: int, sampling: SamplingParams
) -> list[int]:
    """What any correct serving of the prompt gives, if nothing cuts it short."""
    output: list[int] = []
    while finish_of(prompt, max_tokens, len(output)) is None:
        output.append(token_after(prompt, output, sampling))
    return output


@dataclass(slots=True, eq=False)
class SimulatedWorker:
    """One incarnation. `reserved` and `prefilling` are all that it holds for the router.

    move_ns: where it drains, until when work may go on. settling: it takes nothing any more.
    """

    info: WorkerInfo
    agenda: Agenda
    around: Surroundings
    rng: random.Random
    faults: Faults
    alive: bool = True
    hung_until_ns: int = 0
    reserved: dict[str, Sequence] = field(default_factory=dict)
    prefilling: dict[str, Prefill] = field(default_factory=dict)
    move_ns: int | None = None
    settling: bool = False
    drained: bool = False
    _stepping: bool = False
    _connection: int = 0

    def start(self) -> None:
        """Begin to report load."""
        self._later(self.rng.randrange(LOAD_NS), self._report)

    def receive(self, command: Command) -> None:
        """A command off the stream; those for another incarnation never get here."""
        connection = self._connection
        self._later(0, lambda: self._obey(command) if connection == self._connection else None)

    def router_gone(self) -> None:
        """The stream is broken: end what the router owned."""
        self._connection += 1
        self.reserved.clear()
        self.prefilling.clear()
        if self.drained:
            self._leave()

    @property
    def draining_s(self) -> float | None:
        """See `Load.draining_s`."""
        return None if self.move_ns is None else max(0, self.move_ns - self.agenda.now_ns) / 1e9

    def committed(self, transfer_id: str, token: SampledToken, finished: bool) -> bool:
        """Whether the KV found its reservation; it decodes from there, behind `token`."""
        sequence = self.reserved.get(transfer_id)
        if sequence is None or not self.alive:
            return False
        if finished:
            del self.reserved[transfer_id]
        else:
            sequence.output = [*sequence.command.output, token.token]
            sequence.arrived_ns = self.agenda.now_ns
            self._step_later()
        return True

    # Commands.

    def _later(self, delay_ns: int, act: Callable[[], None]) -> None:
        """Do it when its time has come, if the worker lives and does not hang then."""

        def attempt() -> None:
            if not self.alive:
                return
            if self.agenda.now_ns < self.hung_until_ns:
                self.agenda.at(self.hung_until_ns, attempt)
            else:
                act()

        self.agenda.after(delay_ns, attempt)

    def _obey(self, command: Command) -> None:
        match command:
            case Reserve():
                self._reserve(command)
            case Prefill() if self.settling:
                self._fail(command.request_id, ErrorCode.DRAINING, Phase.QUEUE)
            case Prefill():
                self.prefilling[command.request_id] = command
                delay = self.rng.randrange(PREFILL_NS_MAX)
                self._later(delay, lambda: self._prefill(command, delay))
            case Abort():
                self.reserved.pop(command.request_id, None)
                self.prefilling.pop(command.request_id, None)
            case Heartbeat() | StepBudget() | Erase():
                pass
            case Drain():
                self._drain(round(command.timeout_s * 1e9))
            case Undrain():
                self._undrain()
            case Dismiss():
                self._leave()

    def _reserve(self, command: Reserve) -> None:
        work_id = command.request_id
        assert work_id not in self.reserved, f"{work_id} is reserved already"
        tokens = len(command.prompt) + command.max_tokens - 1
        blocks = blocks_for(tokens, self.info.block_tokens)
        if self.move_ns is not None:
            self._fail(work_id, ErrorCode.DRAINING, Phase.RESERVATION)
            return
        if blocks > self._free_blocks or self._strikes(self.faults.refuse):
            self._fail(work_id, ErrorCode.OVERLOADED, Phase.RESERVATION)
            return
        self.reserved[work_id] = Sequence(command, blocks)
        self._later(self.rng.randrange(STEP_NS), lambda: self._answer_reserve(work_id))

    def _answer_reserve(self, work_id: str) -> None:
        sequence = self.reserved.get(work_id)
        if sequence is None:
            return
        if self._strikes(self.faults.fail):
            self._fail(work_id, self._code(), Phase.RESERVATION)
            return
        tokens = len(sequence.command.given)
        ticket = a_ticket(self.info, transfer_id=work_id, tokens=tokens, lease_s=LEASE_S)
        self.around.emit(self, Reserved(work_id, ticket, cached_tokens=0, loaded_tokens=0))

    def _prefill(self, command: Prefill, spent_ns: int) -> None:
        work_id = command.request_id
        if work_id not in self.prefilling:
            return
        if self._strikes(self.faults.fail):
            self._fail(work_id, self._code(), Phase.PREFILL)
            return
        output = list(command.output)
        token = SampledToken(token_after(command.prompt, output, command.sampling))
        finish = finish_of(command.prompt, command.max_tokens, len(output) + 1)
        queue_ns = spent_ns // 3
        prefilled = Prefilled(
            request_id=work_id,
            token=token,
            finish=finish,
            queue_ns=queue_ns,
            prefill_ns=spent_ns - queue_ns,
            computed_tokens=len(command.given),
            loaded_tokens=0,
        )
        self.around.emit(self, prefilled)
        finished = finish is not None
        delay = self.rng.randrange(STEP_NS)
        self._later(delay, lambda: self._hand_over(command, token, finished))

    def _hand_over(self, command: Prefill, token: SampledToken, finished: bool) -> None:
        if command.request_id not in self.prefilling:
            return
        lost = self._strikes(self.faults.fail)
        if lost or not self.around.commit(command.ticket, token, finished):
            self._fail(command.request_id, ErrorCode.TRANSFER_FAILED, Phase.TRANSFER)
        else:
            del self.prefilling[command.request_id]

    # Leaving.

    def _drain(self, timeout_ns: int) -> None:
        move_ns = self.agenda.now_ns + timeout_ns
        if self.move_ns is None:
            self._later(STEP_NS, self._settle)
        self.move_ns = move_ns if self.move_ns is None else min(self.move_ns, move_ns)
        self.around.emit(self, self._load())

    def _undrain(self) -> None:
        if not self.drained:
            self.move_ns, self.settling = None, False
        self.around.emit(self, self._load())

    def _settle(self) -> None:
        """Once nothing runs, take no more, and be done a moment later."""
        if self.move_ns is None or self.settling:
            return
        work_ids = {**self.reserved, **self.prefilling}
        if not work_ids:
            self.settling = True
            self._later(self.rng.randrange(SETTLE_NS_MAX), self._part)
            return
        if self.agenda.now_ns >= self.move_ns + GRACE_NS:
            for work_id in work_ids:
                self._fail(work_id, ErrorCode.DRAINING, Phase.DECODE)
        self._later(STEP_NS, self._settle)

    def _part(self) -> None:
        if self.settling and not self.drained:
            self.drained = True
            self.around.emit(self, Drained(0, 0))
            self._later(GRACE_NS, self._leave)

    def _leave(self) -> None:
        if self.alive:
            self.alive = False
            self.around.left(self)

    # Steps.

    def _step_later(self) -> None:
        if not self._stepping:
            self._stepping = True
            self._later(self.rng.randrange(1, STEP_NS), self._step)

    def _step(self) -> None:
        self._stepping = False
        outputs = []
        for work_id, sequence in list(self.reserved.items()):
            if sequence.arrived_ns is None:
                continue
            if self._strikes(self.faults.fail):
                self._fail(work_id, self._code(), Phase.DECODE)
                continue
            outputs.append(self._advance(work_id, sequence))
        if outputs:
            self.around.emit(self, Stepped(tuple(outputs)))
            self._step_later()

    def _advance(self, work_id: str, sequence: Sequence) -> SequenceOutput:
        command, first = sequence.command, None
        if sequence.steps == 0:
            assert sequence.arrived_ns is not None
            waited = self.agenda.now_ns - sequence.arrived_ns
            first = FirstStep(waited // 4, waited // 4, waited // 2, 1_000, 4096)
        token = SampledToken(token_after(command.prompt, sequence.output, command.sampling))
        sequence.output.append(token.token)
        sequence.steps += 1
        finish = finish_of(command.prompt, command.max_tokens, len(sequence.output))
        if finish is not None:
            del self.reserved[work_id]
        return SequenceOutput(work_id, (token,), finish, first)

    # Reports.

    @property
    def _free_blocks(self) -> int:
        return self.info.num_blocks - sum(s.blocks for s in self.reserved.values())

    def _report(self) -> None:
        self.around.emit(self, self._load())
        self._later(LOAD_NS, self._report)

    def _load(self) -> Load:
        load = a_load(
            free_blocks=self._free_blocks,
            num_blocks=self.info.num_blocks,
            running=sum(s.arrived_ns is not None for s in self.reserved.values()),
            waiting=len(self.prefilling),
            waiting_tokens=sum(len(p.prompt) for p in self.prefilling.values()),
        )
        return replace(load, draining_s=self.draining_s)

    def _strikes(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _code(self) -> ErrorCode:
        return self.rng.choice(self.faults.codes)

    def _fail(self, work_id: str, code: ErrorCode, phase: Phase) -> None:
        """End all work of the request here, which is what `Failed` promises."""
        self.reserved.pop(work_id, None)
        self.prefilling.pop(work_id, None)
        self.around.emit(self, Failed(work_id, code, "simulated", phase))
