"""The blocks of a whole replica: one pool for each data-parallel group.

Block ids are the replica's: ``group * blocks of one group + block within it``. All blocks of a
sequence are of one group, since its ranks compute the sequence together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from eastwest.blocks import BlockHash
from eastwest.errors import Overloaded
from engine.block_journal import BlockJournal
from engine.blocks import BlockPool


class BlockGroups:
    """`groups` pools of ``num_blocks / groups`` blocks each. Holds no KV itself.

    The journal is told of names that come to, and leave, the replica as a whole.
    """

    def __init__(self, num_blocks: int, groups: int = 1) -> None:
        assert num_blocks % groups == 0, "groups have the same number of blocks"
        self.num_blocks = num_blocks
        self.group_blocks = num_blocks // groups
        self.journal = BlockJournal()
        self._pools = [BlockPool(self.group_blocks, self) for _ in range(groups)]

    @property
    def free_blocks(self) -> int:
        """Blocks with no contents worth keeping."""
        return sum([pool.free_blocks for pool in self._pools])

    @property
    def cached_blocks(self) -> int:
        """Blocks that only the prefix caches keep; `take` may evict them."""
        return sum([pool.cached_blocks for pool in self._pools])

    def group_of(self, blocks: Sequence[int]) -> int:
        """The group that holds a sequence's blocks; 0 for none."""
        return blocks[0] // self.group_blocks if blocks else 0

    def refcounts(self) -> Mapping[int, int]:
        """References of every held block, read-only."""
        if len(self._pools) == 1:
            return self._pools[0].refcounts()
        return {
            self._first(group) + block: count
            for group, pool in enumerate(self._pools)
            for block, count in pool.refcounts().items()
        }

    def take(self, hashes: Sequence[BlockHash], total: int) -> tuple[list[int], list[int]]:
        """``(shared, fresh)``, together `total` blocks of one group with a reference each.

        Shared ones hold the longest prefix of `hashes` that the group knows. The group that knows
        most of it is preferred, then the emptiest. Raises `Overloaded`, and takes nothing, where
        no group has room.
        """
        refusal: Overloaded | None = None
        for group in self._by_preference(hashes):
            pool, first = self._pools[group], self._first(group)
            shared = pool.share(hashes)
            try:
                # Right behind the prefix where possible: the engine reads a single run fastest.
                after = shared[-1] if shared else None
                fresh = pool.allocate(total - len(shared), after=after)
            except Overloaded as error:
                pool.release(shared)
                refusal = refusal or error
                continue
            return [first + b for b in shared], [first + b for b in fresh]
        assert refusal is not None
        raise refusal

    def match(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading ones of `hashes` one group knows; takes nothing."""
        return max(pool.match(hashes) for pool in self._pools)

    def publish(self, block: int, block_hash: BlockHash) -> None:
        """Name a held block; see `BlockPool.publish`."""
        group, own = divmod(block, self.group_blocks)
        self._pools[group].publish(own, block_hash)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference of each; see `BlockPool.release`."""
        if blocks:
            group = self.group_of(blocks)
            self._pools[group].release(self._own(group, blocks))

    def names(self) -> Iterable[BlockHash]:
        """The names of all blocks that have one, each once."""
        return dict.fromkeys(chain.from_iterable(pool.names() for pool in self._pools))

    def forget(self, hashes: Sequence[BlockHash]) -> None:
        """See `BlockPool.forget`, in all groups."""
        for pool in self._pools:
            pool.forget(hashes)

    def named(self, block_hash: BlockHash) -> None:
        """A group has given the name (`NameListener`)."""
        self.journal.stored((block_hash,))

    def unnamed(self, block_hash: BlockHash) -> None:
        """A group has taken the name back (`NameListener`); another one may still have it."""
        if len(self._pools) > 1 and any(pool.match((block_hash,)) for pool in self._pools):
            return
        self.journal.removed((block_hash,))

    def check_integrity(self) -> None:
        """Assert that each block is in exactly one state and all indices agree."""
        for pool in self._pools:
            pool.check_integrity()

    def _by_preference(self, hashes: Sequence[BlockHash]) -> Sequence[int]:
        groups = range(len(self._pools))
        if len(groups) == 1:
            return groups
        rank = [(-pool.match(hashes), -_available(pool)) for pool in self._pools]
        return sorted(groups, key=rank.__getitem__)

    def _first(self, group: int) -> int:
        return group * self.group_blocks

    def _own(self, group: int, blocks: Sequence[int]) -> Sequence[int]:
        """A sequence's blocks as its group counts them."""
        own = [block - self._first(group) for block in blocks]
        assert 0 <= min(own) <= max(own) < self.group_blocks, "blocks of several groups"
        return own


def _available(pool: BlockPool) -> int:
    return pool.free_blocks + pool.cached_blocks
