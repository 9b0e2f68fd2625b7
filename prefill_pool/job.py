"""One prompt on its way through a prefill worker.

PLACING    waits for blocks
LOADING    asks what is stored of its prefix
COMPUTING  its chunks run, and what is stored is loaded; finished blocks are pushed meanwhile
PUSHING    the first token is known; the rest of the KV is on its way
ENDED
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from eastwest.blocks import BlockHash
from eastwest.messages import Prefill, Ticket
from eastwest.ports import SampleInput, StepRow
from eastwest.stopping import StopRule
from eastwest.types import FinishReason, SampledToken
from kv_transfer.ledger import Owner
from prefill_pool.loading import Loading
from prefill_pool.scheduler import Chunk


class JobState(enum.StrEnum):
    PLACING = "placing"
    LOADING = "loading"
    COMPUTING = "computing"
    PUSHING = "pushing"
    ENDED = "ended"


class Target(Protocol):
    """Where the KV of a prompt goes: over the network, or into a reservation in this replica."""

    def ready(self, tokens: int) -> None:
        """KV before position `tokens` is there. Steps whose rows name the transfer say so by
        themselves, layer by layer."""

    async def finish(self, first_token: SampledToken, *, finished: bool) -> object:
        """Everything is computed: deliver the rest and commit, or raise a typed error."""

    async def abort(self) -> None:
        """Give up. Idempotent."""


class LocalReservations(Protocol):
    """The reservations of the decode worker that shares this replica, if there is one."""

    def room_of(self, command: Prefill) -> tuple[Sequence[int], int]:
        """The reserved blocks, and how many of them have their KV already. Raises `LeaseExpired`
        where the reservation is gone, `InvalidArgument` where it is for something else."""

    def holds(self, ticket: Ticket) -> bool:
        """Whether the reservation is still there; its blocks may be written only while it is."""

    def lend(self, ticket: Ticket, writer: asyncio.Task[None]) -> None:
        """`writer` may write to the reserved blocks: where the reservation ends first, it is
        cancelled, and they stay until it is over."""

    def target(self, ticket: Ticket) -> Target:
        """Commits straight into the reservation: what was computed is already in place."""


@dataclass(slots=True)
class Job:
    """State of one prompt. `blocks` hold its KV and, unless `local`, belong to `owner`.

    given: what is computed: the client's prompt, and behind it the output of workers that are
    lost, if there is any. present_tokens: leading ones whose KV was there already. loader: runs
    `loading`.
    """

    command: Prefill
    given: tuple[int, ...]
    router_id: str
    owner: Owner
    stop_rule: StopRule
    hashes: list[BlockHash]
    received_ns: int
    deadline_ns: int
    first_token: asyncio.Future[SampledToken]
    local: bool = False
    target: Target | None = None
    state: JobState = JobState.PLACING
    blocks: Sequence[int] = ()
    present_tokens: int = 0
    published: int = 0
    started_ns: int | None = None
    sampled_ns: int = 0
    ending: bool = False
    loading: Loading | None = None
    loader: asyncio.Task[None] | None = field(default=None, repr=False)
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def request_id(self) -> str:
        return self.command.request_id

    def row(self, chunk: Chunk) -> StepRow:
        """The engine's row for a chunk; the last one samples."""
        command, given = self.command, self.given
        sample = None
        if chunk.stop == len(given):
            banned = self.stop_rule.banned(len(command.output))
            sample = SampleInput(command.sampling, command.prompt, command.output, banned)
        transfer = "" if self.local else command.ticket.transfer_id
        return StepRow(given[chunk.start : chunk.stop], chunk.start, self.blocks, sample, transfer)

    def finish(self, token: SampledToken) -> FinishReason | None:
        """Whether the token after what is given is the last of the output."""
        return self.stop_rule.finish(token.token, len(self.command.output) + 1)
