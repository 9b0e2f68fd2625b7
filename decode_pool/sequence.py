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
from eastwest.blocks import BlockHash, block_hashes, hash_seed
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
    """State of one request. `hashes` name its leading full blocks, as many as are published."""

    command: Reserve
    router_id: str
    owner: Owner
    stop_rule: StopRule
    prompt_hashes: list[BlockHash]
    block_tokens: int
    fingerprint: str
    deadline_ns: int
    state: WorkState = WorkState.RESERVING
    transfer_id: str = ""
    blocks: Sequence[int] = ()
    hashes: list[BlockHash] = field(default_factory=list)
    cached_blocks: int = 0
    loaded_blocks: int = 0
    arrival: Arrival | None = None
    running: Running | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def request_id(self) -> str:
        return self.command.request_id

    @property
    def session(self) -> SessionKey | None:
        command = self.command
        return SessionKey(command.salt, command.session_id) if command.session_id else None

    @property
    def computed_tokens(self) -> int:
        """Tokens whose KV is present once the prompt is committed."""
        return self.running.computed if self.running else len(self.command.prompt)

    def unpublished(self) -> tuple[Sequence[int], list[BlockHash]]:
        """Blocks that have become full since the last call of `published`, with their hashes."""
        full = self.computed_tokens // self.block_tokens
        done = len(self.hashes)
        if full <= done:
            return (), []
        known = self.prompt_hashes[done:full]
        if done + len(known) < full:
            output = self.running.output if self.running else []
            tokens = [*self.command.prompt, *output][: full * self.block_tokens]
            seed = hash_seed(self.fingerprint, self.command.salt)
            start = done + len(known)
            parent = known[-1] if known else self.hashes[-1] if self.hashes else seed
            first_token = start * self.block_tokens
            known = known + block_hashes(tokens, self.block_tokens, parent, first_token=first_token)
        return self.blocks[done:full], known
