"""The Protocols between rooms: what one room asks of another without importing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eastwest.blocks import BlockHash
from eastwest.layout import KVSpec, ParallelLayout, Shard
from eastwest.messages import ModelInfo
from eastwest.types import SampledToken, SamplingParams

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class StepRow:
    """One sequence's share of an engine step.

    tokens: ids to feed, at least one, at positions ``start, start + 1, ...``. blocks: the block
    table; entry i holds the KV of positions ``[i * block_tokens, (i + 1) * block_tokens)`` and
    covers at least ``start + len(tokens)``; KV of all positions before `start` is present.
    sample: None where the row's last token is not the last known one (a chunk in mid-prompt).
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    sample: SampleInput | None


class KVMemory(Protocol):
    """The paged KV of one rank, addressed in canonical terms (see `eastwest.layout`).

    `layers` and `heads` are global indices inside `shard`. Callers make sure that nothing
    writes to the blocks they read; reads and writes of disjoint blocks may run in threads
    beside an engine step.
    """

    spec: KVSpec
    shard: Shard
    num_blocks: int
    block_tokens: int

    def read(self, blocks: Sequence[int], layers: range, heads: range) -> Buffer:
        """The canonical bytes of the run that `blocks` (in this order) hold: one new buffer."""

    def write(self, blocks: Sequence[int], layers: range, heads: range, payload: Buffer) -> None:
        """Put a canonical run into `blocks`. `len(payload)` must be exact (`InvalidArgument`)."""


class Engine(Protocol):
    """One model replica, below batching. `step` blocks; all else is cheap.

    One thread at a time calls `step`. Rows are independent sequences; a row's blocks belong to
    the caller, shared blocks are never written.
    """

    @property
    def model(self) -> ModelInfo:
        """What it serves."""

    @property
    def layout(self) -> ParallelLayout:
        """How its ranks share the model."""

    @property
    def kv(self) -> KVMemory:
        """The paged KV of its first rank."""

    def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        """Run one batch; the i-th result is the i-th row's token, None where it did not sample."""

    def close(self) -> None:
        """Free memory and end threads. Idempotent."""


class BlockStore(Protocol):
    """The offline store of canonical blocks, whole or absent.

    Every method raises `StoreUnavailable` when the store cannot answer in time, and never
    returns wrong data: what fails its checksum counts as absent. Values are canonical runs of
    one block over all layers and heads.
    """

    async def match(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading blocks of the chain are stored completely."""

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        """Blocks of the longest intact prefix of the chain; may be shorter than asked."""

    async def write(self, blocks: Sequence[tuple[BlockHash, Buffer]]) -> int:
        """Store blocks, each complete or not at all; returns bytes newly written (0 if known)."""

    async def touch(self, hashes: Sequence[BlockHash]) -> None:
        """Give the blocks their full time to live again."""

    async def close(self) -> None:
        """Close connections. Idempotent."""
