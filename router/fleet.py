"""The workers that a router knows: which incarnation of each is up, and how loaded it is.

A `Worker` is one connection to one incarnation. A reconnect makes a new one, so whatever still
refers to the former can do no harm:

    UP ──broken, or replaced──▶ DOWN
     │▲
     ▼└── any event
    DOWN and silent (its stream is open, but it has not spoken for too long)

One that drains (`router.drains`) is up, and gets no new work.

Load is an estimate: what the worker last reported, and what this router has placed there since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from eastwest.blocks import sequence_blocks
from eastwest.errors import InvalidArgument, NotFound, Unavailable
from eastwest.messages import Abort, Command, Load, WorkerInfo
from eastwest.types import Liveness, Role
from router.requests import Action, Request, Send

# Chunks are rounded to so many tokens, so that few sizes are predicted.
_GRAIN = 64


class Share(NamedTuple):
    """What one request adds to one worker's load."""

    prompt_tokens: int = 0
    sequences: int = 0
    asked_blocks: int = 0
    context_tokens: int = 0
    decoding: int = 0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as seen from outside. `load` is its last report, None before the first."""

    info: WorkerInfo
    liveness: Liveness
    load: Load | None


@dataclass(slots=True, eq=False)
class Worker:
    """One incarnation, compared by identity.

    Of this router's requests: prompt_tokens are to be prefilled here; sequences decode here, or
    will, with context_tokens that they began with; asked_blocks are reservations not answered yet;
    granted_blocks those answered since the last report, less what has ended since. Of the
    sequences, `decoding` have begun to, by these `targets` of time per token. prompts_ns: when the
    prompts that wait here had the worker to themselves. budget: prompt tokens of a step that
    decodes, see `router.budgets`; told_budget: what the worker was told last. foreign_*: what
    the last report held beyond that, the work of other routers. orphans: work to abort if a silent
    worker speaks again. kind: workers of one kind can feed each other: they serve the same model.
    """

    info: WorkerInfo
    heard_ns: int
    liveness: Liveness = Liveness.UP
    silent: bool = False
    draining: bool = False
    load: Load | None = None
    refused_until_ns: int = 0
    prompt_tokens: int = 0
    sequences: int = 0
    context_tokens: int = 0
    asked_blocks: int = 0
    granted_blocks: int = 0
    decoding: int = 0
    targets: Counter[float] = field(default_factory=Counter)
    prompts_ns: int = 0
    budget: int = field(init=False)
    told_budget: int = field(init=False)
    foreign_tokens: int = 0
    foreign_sequences: int = 0
    orphans: list[str] = field(default_factory=list)
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = self.info.model.fingerprint
        self.budget = self.told_budget = self.info.step_tokens

    def __str__(self) -> str:
        return f"{self.info.role} worker {self.info.worker_id}"

    @property
    def worker_id(self) -> str:
        return self.info.worker_id

    @property
    def up(self) -> bool:
        return self.liveness is Liveness.UP

    @property
    def decodes(self) -> bool:
        return self.info.role is not Role.PREFILL

    @property
    def room_blocks(self) -> int:
        """Blocks that a new reservation can have, as estimated; may be negative."""
        blocks = self.info.num_blocks
        if self.load is not None:
            blocks = min(blocks, self.load.free_blocks + self.load.cached_blocks)
        return min(self.info.num_blocks, blocks - self.granted_blocks) - self.asked_blocks

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens to compute before a new prompt's turn."""
        return self.prompt_tokens + self.foreign_tokens

    @property
    def decoding_sequences(self) -> int:
        """Sequences that a new one would share decode steps with."""
        return self.sequences + self.foreign_sequences

    @property
    def decoding_now(self) -> int:
        """Sequences whose steps a prompt here shares."""
        return self.decoding + self.foreign_sequences

    @property
    def tpot_s(self) -> float | None:
        """The tightest target of those that decode; None where none does."""
        return min(self.targets, default=None)

    def chunks(self, tokens: int) -> tuple[int, int]:
        """Steps that prompts of so many tokens take beside a running batch, and tokens of each."""
        steps = -(-tokens // self.budget)
        return steps, -(-tokens // steps // _GRAIN) * _GRAIN

    def blocks_of(self, request: Request) -> int:
        """KV blocks of the request's prompt and output on this worker."""
        return sequence_blocks(len(request.prompt), request.max_tokens, self.info.block_tokens)

    def send(self, command: Command) -> Send:
        return Send(self.info.worker_id, self.info.epoch, command)

    def abort(self, work_id: str, out: list[Action]) -> None:
        """End the work here, as soon as the worker can hear it."""
        if self.up:
            out.append(self.send(Abort(work_id)))
        elif self.silent:
            self.orphans.append(work_id)

    def fall(self, *, silent: bool) -> None:
        """It is gone; or silent, and may be back with all that it held."""
        self.liveness, self.silent = Liveness.DOWN, silent
        if not silent:
            self.orphans.clear()

    def wake(self, out: list[Action]) -> None:
        """A silent worker speaks again: it is up, and must drop what was given up meanwhile."""
        self.liveness, self.silent = Liveness.UP, False
        for work_id in self.orphans:
            self.abort(work_id, out)
        self.orphans.clear()

    # The estimate.

    def expect(self, blocks: int, context_tokens: int) -> None:
        """A reservation is about to be asked for."""
        self.sequences += 1
        self.context_tokens += context_tokens
        self.asked_blocks += blocks

    def grant(self, blocks: int) -> None:
        """The reservation was made."""
        self.asked_blocks -= blocks
        self.granted_blocks += blocks

    def begin(self, tpot_s: float) -> None:
        """A sequence with this target has its first token."""
        self.decoding += 1
        self.targets[tpot_s] += 1

    def end(self, tpot_s: float) -> None:
        """It takes part no more."""
        self.decoding -= 1
        self.targets[tpot_s] -= 1
        if not self.targets[tpot_s]:
            del self.targets[tpot_s]

    def release(self, blocks: int, context_tokens: int, *, granted: bool) -> None:
        """A reservation, made or only asked for, is over; there may be room again."""
        self.sequences -= 1
        self.context_tokens -= context_tokens
        if granted:
            self.granted_blocks -= blocks
        else:
            self.asked_blocks -= blocks
        self.refused_until_ns = 0

    def report(self, load: Load) -> None:
        """Replace what the worker last said. Its stream is ordered, so the report includes every
        reservation that it has answered."""
        if self.load is None or _capacity(load) != _capacity(self.load):
            self.refused_until_ns = 0
        self.load = load
        self.granted_blocks = 0
        self.foreign_tokens = max(0, load.waiting_tokens - self.prompt_tokens)
        self.foreign_sequences = max(0, load.running - self.sequences)

    def check_integrity(self, shares: Iterable[Share]) -> None:
        """Assert that the estimate is the sum of what each active request adds to it."""
        total = Share(*map(sum, zip(Share(), *shares, strict=True)))
        assert self.prompt_tokens == total.prompt_tokens
        assert self.sequences == total.sequences
        assert self.asked_blocks == total.asked_blocks
        assert self.context_tokens == total.context_tokens
        assert self.decoding == total.decoding == self.targets.total()
        assert not (self.up and self.silent)
        assert self.silent or not self.orphans


def _capacity(load: Load) -> tuple[int, int, int, int]:
    return load.free_blocks + load.cached_blocks, load.running, load.waiting, load.waiting_tokens


class Fleet:
    """The table of workers: the latest incarnation of each."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        # Of those that decode, each once: tokens of a block, and the most blocks of a sequence.
        self._sizes: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker_id: str) -> Worker | None:
        """The latest incarnation of the worker."""
        return self._workers.get(worker_id)

    def current(self, worker_id: str, epoch: int) -> Worker | None:
        """The worker where it is of this epoch and its stream is open."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.info.epoch != epoch:
            return None
        if worker.liveness is not Liveness.UP and not worker.silent:
            return None
        return worker

    def connect(self, info: WorkerInfo, now_ns: int) -> Worker:
        """A connection takes the place of any former one, which the caller has ended."""
        former = self._workers.get(info.worker_id)
        assert former is None or not (former.up or former.silent)
        worker = self._workers[info.worker_id] = Worker(info, now_ns)
        infos = [w.info for w in self._workers.values() if w.decodes]
        self._sizes = {(i.block_tokens, i.sequence_blocks_max) for i in infos}
        return worker

    def up(self) -> list[Worker]:
        """The workers that are up, in order of their first appearance."""
        return [w for w in self._workers.values() if w.up]

    def open(self) -> list[Worker]:
        """Those of them that take work, for they do not leave."""
        return [w for w in self._workers.values() if w.up and not w.draining]

    def reachable(self, worker_id: str) -> Worker:
        """The worker, which is up; raises `NotFound` or `Unavailable` where it is not."""
        worker = self._workers.get(worker_id)
        if worker is None:
            known = ", ".join(w.worker_id for w in self.up()) or "none is connected"
            raise NotFound(f"worker {worker_id!r} is not known to this router; allowed: {known}")
        if not worker.up:
            raise Unavailable(f"{worker} is down; allowed: workers that are up")
        return worker

    def check_fits(self, request: Request) -> None:
        """Raise `InvalidArgument` where no known decode worker, up or not, could hold the request
        even when empty. Knowing none says nothing."""
        prompt, output = len(request.prompt), request.max_tokens
        for block_tokens, blocks_max in self._sizes:
            if sequence_blocks(prompt, output, block_tokens) <= blocks_max:
                return
        if not self._sizes:
            return
        block_tokens, blocks_max = max(self._sizes, key=lambda size: size[0] * size[1])
        raise InvalidArgument(
            f"a prompt of {prompt} tokens with up to {output} new ones needs "
            f"{sequence_blocks(prompt, output, block_tokens)} KV blocks; allowed: {blocks_max}, "
            f"what one sequence can have on the largest decode worker"
        )

    def views(self) -> tuple[WorkerView, ...]:
        return tuple(
            WorkerView(w.info, Liveness.DRAINING if w.up and w.draining else w.liveness, w.load)
            for w in self._workers.values()
        )
