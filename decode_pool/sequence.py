"""One request on its way through a decode worker.

RESERVING  waits for blocks, reads stored KV into them
RESERVED   its transfer is open; KV arrives (or is computed in place by this replica)
RUNNING    committed; decodes
ENDED
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from decode_pool.residency import SessionKey
from decode_pool.scheduler import Running
from eastwest.blocks import BlockHash, block_hashes
from eastwest.errors import InvalidArgument
from eastwest.messages import FirstStep, Reserve
from eastwest.stopping import StopRule
from kv_transfer.ledger import Owner


class WorkState(enum.StrEnum):
    RESERVING = "reserving"
    RESERVED = "reserved"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True)
class Arrival:
    """How the KV of a sequence came: filled at commit, told with its first step."""

    committed_ns: int
    import_ns: int
    transfer_ns: int
    transfer_bytes: int

    def first_step(self, started_ns: int, ended_ns: int) -> FirstStep:
        return FirstStep(
            import_ns=self.import_ns,
            decode_queue_ns=max(0, started_ns - self.committed_ns),
            first_step_ns=ended_ns - started_ns,
            transfer_ns=self.transfer_ns,
            transfer_bytes=self.transfer_bytes,
        )


@dataclass(slots=True)
class Work:
    """State of one request. `hashes` name its leading full blocks, as many as are published;
    seed: the parent of the first. given: prompt and output so far, whose full blocks
    `given_hashes` name. writer: see `InPlaceReservations.lend`."""

    command: Reserve
    given: tuple[int, ...]
    router_id: str
    owner: Owner
    stop_rule: StopRule
    given_hashes: list[BlockHash]
    block_tokens: int
    seed: BlockHash
    deadline_ns: int
    state: WorkState = WorkState.RESERVING
    transfer_id: str = ""
    blocks: Sequence[int] = ()
    hashes: list[BlockHash] = field(default_factory=list)
    cached_blocks: int = 0
    loaded_blocks: int = 0
    load_ns: int = 0
    arrival: Arrival | None = None
    running: Running | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    writer: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def request_id(self) -> str:
        return self.command.request_id

    @property
    def session(self) -> SessionKey | None:
        command = self.command
        return SessionKey(command.salt, command.session_id) if command.session_id else None

    @property
    def computed_tokens(self) -> int:
        """Tokens whose KV is present once what is given is committed."""
        return self.running.computed if self.running else len(self.given)

    def check_first(self, token: int, finished: bool, vocab_size: int) -> None:
        """Raise `InvalidArgument` where what its sender says cannot be the token after what is
        given. finished: it is also the last one."""
        if token >= vocab_size:
            raise InvalidArgument(f"the first token is {token}; allowed: 0 to {vocab_size - 1}")
        last = self.stop_rule.finish(token, len(self.command.output) + 1) is not None
        if finished != last:
            raise InvalidArgument(
                f"a commit with first token {token} says finished {finished}; allowed: {last}, by "
                f"the stop tokens and max_tokens of the reservation"
            )

    def unpublished(self) -> tuple[Sequence[int], list[BlockHash]]:
        """Blocks that are full and not among `hashes` yet, with their hashes."""
        full, done = self.computed_tokens // self.block_tokens, len(self.hashes)
        if full <= done:
            return (), []
        fresh = self.given_hashes[done:full]
        known = done + len(fresh)
        if known < full:
            parent = fresh[-1] if fresh else self.hashes[-1] if self.hashes else self.seed
            tokens = self._tokens(known * self.block_tokens, full * self.block_tokens)
            fresh = fresh + block_hashes(tokens, self.block_tokens, parent)
        return self.blocks[done:full], fresh

    def _tokens(self, start: int, stop: int) -> list[int]:
        prompt, output = self.command.prompt, self.running.output if self.running else []
        size = len(prompt)
        return [*prompt[start:stop], *output[max(0, start - size) : max(0, stop - size)]]
