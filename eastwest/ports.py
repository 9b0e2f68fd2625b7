"""The Protocols between rooms: what one room asks of another without importing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eastwest.blocks import BlockHash
from eastwest.layout import KVSpec, ParallelLayout, Shard
from eastwest.messages import KvSource, ModelInfo, WorkerInfo
from eastwest.types import SampledToken, SamplingParams
from eastwest.value import value

Buffer = bytes | bytearray | memoryview


@value
class SampleInput:
    """What choosing the next token of a sequence depends on, besides its logits.

    output: the tokens generated before this one; its length is the position of the new token,
    and with the seed the whole random state, so that a sequence can move between workers.
    banned: tokens that may not be chosen (ending tokens before `min_tokens`).
    """

    params: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]
    banned: Sequence[int] = ()


@value
class StepRow:
    """One sequence's share of an engine step.

    tokens: ids to feed, at least one, at positions ``start, start + 1, ...``. blocks: the block
    table; entry i holds the KV of positions ``[i * block_tokens, (i + 1) * block_tokens)`` and
    covers at least ``start + len(tokens)``; KV of all positions before `start` is present.
    Block ids are the replica's: ``group * blocks of one group + the rank's own block``; all
    blocks of a row are of one data-parallel group. sample: None where the row's last token is not
    the last known one (a chunk in mid-prompt). transfer: of the push that this row's KV feeds,
    "" for none.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    sample: SampleInput | None
    transfer: str = ""


class KVMemory(Protocol):
    """The paged KV of one rank, addressed in canonical terms (see `eastwest.layout`).

    `layers` and `heads` are global indices inside `shard`; `blocks` are the rank's own, from 0.
    `tokens`, where given, narrows the run that the blocks hold: position 0 is the first token of
    ``blocks[0]``. Callers make sure that nothing writes to the blocks they read; reads and writes
    of disjoint blocks may run in threads beside an engine step.
    """

    @property
    def spec(self) -> KVSpec: ...
    @property
    def shard(self) -> Shard: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...

    def read(
        self, blocks: Sequence[int], layers: range, heads: range, tokens: range | None = None
    ) -> Buffer:
        """The canonical bytes of the run that `blocks` (in this order) hold: one new buffer."""

    def write(
        self,
        blocks: Sequence[int],
        layers: range,
        heads: range,
        payload: Buffer,
        tokens: range | None = None,
    ) -> None:
        """Put a canonical run into `blocks`. `len(payload)` must be exact (`InvalidArgument`)."""


class ReplicaKV(Protocol):
    """The paged KV of a whole replica, block by block and over all layers and heads.

    Block ids are the replica's (see `StepRow`). Used off the hot path: to spill and to load.
    Whatever ends a call, nothing touches the blocks after it.
    """

    @property
    def spec(self) -> KVSpec: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...

    async def read(self, blocks: Sequence[int]) -> list[Buffer]:
        """The canonical bytes of each block."""

    async def write(self, blocks: Sequence[int], payloads: Sequence[Buffer]) -> None:
        """Fill blocks with canonical bytes, one payload each (`InvalidArgument`)."""


class StepProgress(Protocol):
    """Told how far a step is, from the thread it runs in; must return quickly.

    KV of all rows' tokens before position ``ends[i]`` (i-th row) is present in `layers` on this
    rank. Each layer of the rank is named for each row's last token by the end of the step.
    """

    def __call__(self, layers: range, ends: Sequence[int]) -> None: ...


class Engine(Protocol):
    """One rank of a model replica, below batching. `step` blocks; all else is cheap.

    One thread at a time calls `step`. Rows are independent sequences; a row's blocks belong to
    the caller, shared blocks are never written. Every rank of a replica runs every step, with the
    same rows in the same order; a rank that dies fails the step on all others.
    """

    @property
    def model(self) -> ModelInfo:
        """What it serves."""

    @property
    def layout(self) -> ParallelLayout:
        """How the replica's ranks share the model."""

    @property
    def rank(self) -> int:
        """Which of them this is."""

    @property
    def kv(self) -> KVMemory:
        """The paged KV of this rank."""

    @property
    def expert_tokens(self) -> tuple[int, ...]:
        """Pairs of token and expert computed so far, for each expert that this rank keeps; empty
        for dense models."""

    def step(
        self, rows: Sequence[StepRow], progress: StepProgress | None = None
    ) -> list[SampledToken | None]:
        """Run one batch; the i-th result is the i-th row's token, None where it did not sample.

        On ranks other than the layout's leader all results are None, and so is ``row.sample``
        but for its being None or not."""

    def close(self) -> None:
        """Free memory and end threads. Idempotent."""


class BlockSource(Protocol):
    """Where canonical blocks can be read, whole or absent.

    Every method raises `StoreUnavailable` when there is no answer in time, and never returns wrong
    data: what fails its checksum counts as absent. Values are canonical runs of one block over all
    layers and heads.
    """

    async def match(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading blocks of the chain are there completely."""

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        """Blocks of the longest intact prefix of the chain; may be shorter than asked."""

    async def touch(self, hashes: Sequence[BlockHash]) -> None:
        """The blocks were of use: what has a time to live gets all of it again."""


class BlockStore(BlockSource, Protocol):
    """The offline store."""

    async def write(self, blocks: Sequence[tuple[BlockHash, Buffer]]) -> int:
        """Store blocks, each complete or not at all; returns bytes newly written (0 if known).

        Where there is no room for all of them, the last ones are not stored."""

    async def erase(self, hashes: Sequence[BlockHash]) -> None:
        """Remove blocks. Idempotent; those that are not stored are passed over."""

    async def close(self) -> None:
        """Close connections. Idempotent."""


class Lenders(Protocol):
    """The other workers, which let one read what they have in memory."""

    def blocks_of(self, lender: KvSource) -> BlockSource:
        """Those of one incarnation. Without an answer yet: that comes with the first question."""


class ServingCosts(Protocol):
    """What work takes on a worker, in seconds: predictions, asked for with every placement.

    All are of work by itself, without what waits before it.
    """

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        """Computing `new_tokens` of a prompt behind `past_tokens` whose KV is there, in as many
        steps as the worker needs."""

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        """One decode step of `sequences` whose contexts have `context_tokens` in all, with so many
        tokens of a prompt beside them."""

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        """Reading the KV of `tokens` from the offline store."""

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        """Moving the KV of `tokens` from one worker to another."""
