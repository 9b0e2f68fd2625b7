"""Makes room for a request: blocks, with as much of its prompt's KV in them as can be had.

Room is given in order of arrival. Where there is none, resting sessions leave first; after that,
requests wait until a running one ends.
"""

from __future__ import annotations

import asyncio

from decode_pool.sequence import Work
from decode_pool.spiller import Spiller
from eastwest.blocks import BlockHash, blocks_for
from eastwest.clock import Clock
from eastwest.errors import InvalidArgument, Overloaded
from eastwest.messages import Reserve
from eastwest.ports import BlockStore, KVMemory
from runtime.holdings import Holdings
from runtime.stored_prefix import load_stored


class Intake:
    """Fills `Work.blocks`, `cached_blocks`, `loaded_blocks` and `hashes`."""

    def __init__(
        self,
        *,
        kv: KVMemory,
        holdings: Holdings,
        spiller: Spiller,
        store: BlockStore | None,
        lease_ns: int,
        clock: Clock,
    ) -> None:
        self._kv = kv
        self._holdings = holdings
        self._spiller = spiller
        self._store = store
        self._lease_ns = lease_ns
        self._clock = clock
        self._turn = asyncio.Lock()

    def check_fits(self, command: Reserve) -> None:
        """Raise `InvalidArgument` where the request could never be held."""
        total = self._blocks_needed(command)
        if not self._holdings.could_ever_hold(total):
            raise InvalidArgument(
                f"prompt and output need {total} KV blocks; this worker has {self._kv.num_blocks}"
            )

    async def place(self, work: Work) -> None:
        """Wait for room, take it, read what is stored. Cancelling leaves `work.blocks` to the
        caller, who releases them."""
        hashes = self._shareable(work)
        await self._take(work, hashes)
        cached = work.cached_blocks
        loaded = await load_stored(self._store, self._kv, hashes[cached:], work.blocks[cached:])
        present = cached + loaded
        self._holdings.publish(work.blocks[cached:present], hashes[cached:present])
        work.loaded_blocks = loaded
        work.hashes = hashes[:present]

    async def _take(self, work: Work, hashes: list[BlockHash]) -> None:
        async with self._turn:
            while True:
                try:
                    taken = self._holdings.take(
                        work.owner,
                        hashes,
                        self._blocks_needed(work.command),
                        router_id=work.router_id,
                        lease_until_ns=self._clock.now_ns() + self._lease_ns,
                    )
                except Overloaded:
                    if not await self._spiller.make_room():
                        await self._holdings.wait_change()
                else:
                    work.blocks = taken.blocks
                    work.cached_blocks = taken.shared
                    return

    def _shareable(self, work: Work) -> list[BlockHash]:
        # Without the last token, which is always computed: its block is never a shared one.
        return work.prompt_hashes[: (len(work.command.prompt) - 1) // self._kv.block_tokens]

    def _blocks_needed(self, command: Reserve) -> int:
        # The last output token is never fed, so its KV never exists.
        return blocks_for(len(command.prompt) + command.max_tokens - 1, self._kv.block_tokens)
