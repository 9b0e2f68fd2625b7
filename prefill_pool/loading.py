"""Reads KV of a prompt, stored or lent, into its blocks, from the back, beside the chunks that run.

A source that does not answer counts as empty, and a block that is not intact ends the loading:
what is missing is computed instead. However it ends, nothing touches the blocks afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from eastwest.blocks import BlockHash
from eastwest.clock import Clock
from eastwest.errors import StoreUnavailable
from eastwest.ports import BlockSource, ReplicaKV
from prefill_pool.two_ends import TwoEnds
from runtime.stored_prefix import batch_blocks

# At least so many reads while the other end comes nearer.
_READS = 16

log = logging.getLogger(__name__)


class Loading:
    """Of one prompt. hashes: of its reusable blocks, the first `present` of which have their KV.

    ends: where it stands, once `begun`, and where something was found. load_ns: from the first
    question to the last block that was written, or until now where none was.
    """

    def __init__(
        self,
        source: BlockSource,
        kv: ReplicaKV,
        clock: Clock,
        *,
        hashes: Sequence[BlockHash],
        blocks: Sequence[int],
        present: int,
        meet_tokens: int,
        changed: Callable[[], None],
    ) -> None:
        """changed: called when more is there, and when nothing more comes."""
        self._source = source
        self._kv = kv
        self._clock = clock
        self._hashes = hashes
        self._blocks = blocks
        self._present = present
        self._meet_tokens = meet_tokens
        self._changed = changed
        self._asked_ns = clock.now_ns()
        self._written_ns: int | None = None
        self.ends: TwoEnds | None = None
        self.begun = asyncio.Event()

    @property
    def tokens(self) -> int:
        """Loaded so far."""
        return self.ends.stop - self.ends.high if self.ends is not None else 0

    @property
    def load_ns(self) -> int:
        """See the class."""
        until = self._written_ns
        return (self._clock.now_ns() if until is None else until) - self._asked_ns

    async def run(self) -> None:
        """Load until the two ends have met, or there is nothing more to be had."""
        try:
            if found := await self._source.match(self._hashes[self._present :]):
                await self._load(self._begin(found))
                await self._source.touch(self._hashes[: self._present + found])
        except StoreUnavailable as error:
            log.warning("KV is computed instead of loaded: %s", error.message)
        finally:
            if self.ends is not None:
                self.ends.end()
            self._written_ns = self._written_ns or self._clock.now_ns()
            self.begun.set()
            self._changed()

    def _begin(self, found: int) -> TwoEnds:
        size, start = self._kv.block_tokens, self._present
        self.ends = TwoEnds(start * size, (start + found) * size, self._meet_tokens, size)
        self.begun.set()
        return self.ends

    async def _load(self, ends: TwoEnds) -> None:
        size = self._kv.block_tokens
        batch = batch_blocks(self._kv) * size
        if self._meet_tokens > ends.start:
            # What is being read where the ends meet is read in vain.
            batch = min(batch, max(1, (ends.stop - ends.start) // size // _READS) * size)
        while span := ends.next_span(batch):
            names = self._hashes[span.start // size : span.stop // size]
            payloads = await self._source.read(names)
            if len(payloads) < len(names):
                break
            free = ends.write(span)
            if not free:
                break
            skipped = (free.start - span.start) // size
            blocks = self._blocks[free.start // size : free.stop // size]
            await self._kv.write(blocks, payloads[skipped:])
            ends.written()
            self._written_ns = self._clock.now_ns()
            self._changed()
        ends.end()
        self._changed()
