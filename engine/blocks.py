"""Which blocks of a paged KV are held, cached or free: reference counts and the prefix cache.

A block is in one of three states:

- **free**: nobody holds it and it has no name;
- **held**: somebody holds a reference; it may have a name (the hash of what it contains);
- **cached**: named, held by nobody; found again by `share`, evicted by `allocate`, least
  recently used first.

Blocks are handed out in runs of consecutive numbers where possible, since a sequence whose KV
lies in one piece is attended to and copied without gathering.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from eastwest.blocks import BlockHash
from eastwest.errors import Overloaded


class NameListener(Protocol):
    """Told of names as they come and go; must return quickly."""

    def named(self, block_hash: BlockHash) -> None:
        """A block has this name."""

    def unnamed(self, block_hash: BlockHash) -> None:
        """No block of the pool has this name any more."""


class BlockPool:
    """Allocator and prefix cache of `num_blocks` blocks, numbered from 0. Holds no KV itself."""

    def __init__(self, num_blocks: int, listener: NameListener | None = None) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self._listener = listener
        self._free = _FreeRuns(num_blocks)
        self._refs: dict[int, int] = {}
        self._hash_of: dict[int, BlockHash] = {}
        self._block_of: dict[BlockHash, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def free_blocks(self) -> int:
        """Blocks with no contents worth keeping."""
        return self._free.count

    @property
    def cached_blocks(self) -> int:
        """Blocks that only the prefix cache keeps; `allocate` may evict them."""
        return len(self._cached)

    def refcounts(self) -> Mapping[int, int]:
        """References of every held block; a live, read-only view."""
        return MappingProxyType(self._refs)

    def names(self) -> Iterable[BlockHash]:
        """The names of all blocks that have one; a live view."""
        return self._block_of.keys()

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """`count` blocks with one reference each and no name, in as few runs as possible.

        Those right behind block `after` are preferred. Raises `Overloaded`, and takes nothing,
        where free and cached blocks together do not suffice.
        """
        if count > self._free.count + len(self._cached):
            raise Overloaded(
                f"{count} KV blocks are needed; {self._free.count} are free and "
                f"{len(self._cached)} can be evicted, of {self.num_blocks}"
            )
        while self._free.count < count:
            block, _ = self._cached.popitem(last=False)
            self._unname(block)
            self._free.give(block)
        blocks = self._free.take(count, after)
        self._refs.update(dict.fromkeys(blocks, 1))
        return blocks

    def match(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading blocks of the chain are known; changes nothing."""
        known = 0
        while known < len(hashes) and hashes[known] in self._block_of:
            known += 1
        return known

    def share(self, hashes: Sequence[BlockHash]) -> list[int]:
        """The blocks of the longest known prefix of the chain, one more reference each."""
        blocks = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            self._cached.pop(block, None)
            self._refs[block] = self._refs.get(block, 0) + 1
            blocks.append(block)
        return blocks

    def publish(self, block: int, block_hash: BlockHash) -> None:
        """Name a held block, which is full and will not change any more.

        Where the name is taken by another block (two sequences computed the same prefix), this
        one stays anonymous. Idempotent.
        """
        assert block in self._refs, f"block {block} is published but not held"
        known = self._hash_of.get(block)
        assert known in (None, block_hash), f"block {block} already has another name"
        if block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block
            if self._listener is not None:
                self._listener.named(block_hash)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference of each. Of one call's blocks, later ones are evicted first,
        so that a chain shortens from its end."""
        for block in reversed(blocks):
            assert block in self._refs, f"block {block} is released but not held"
            self._refs[block] -= 1
            if self._refs[block]:
                continue
            del self._refs[block]
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._free.give(block)

    def forget(self, hashes: Iterable[BlockHash]) -> None:
        """Drop names: cached blocks become free, held ones anonymous. Unknown names are fine."""
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                continue
            self._unname(block)
            if block in self._cached:
                del self._cached[block]
                self._free.give(block)

    def check_integrity(self) -> None:
        """Assert that each block is in exactly one state and all indices agree."""
        free = set(self._free.blocks())
        states = (free, set(self._refs), set(self._cached))
        assert sum(map(len, states)) == self.num_blocks, "a block is in no state, or in two"
        assert set().union(*states) == set(range(self.num_blocks))
        assert all(count > 0 for count in self._refs.values())
        assert {h: b for b, h in self._hash_of.items()} == self._block_of
        assert set(self._cached) <= set(self._hash_of), "a cached block has no name"
        assert not free & set(self._hash_of), "a free block has a name"
        self._free.check_integrity()

    def _unname(self, block: int) -> None:
        block_hash = self._hash_of.pop(block)
        del self._block_of[block_hash]
        if self._listener is not None:
            self._listener.unnamed(block_hash)


class _FreeRuns:
    """The free blocks as maximal runs of consecutive numbers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._length_at = {0: count}  # first block -> length
        self._first_at = {count - 1: 0}  # last block -> first block

    def take(self, count: int, after: int | None) -> list[int]:
        """`count` free blocks: behind `after`, else the tightest run that fits, else the longest
        ones; the caller made sure that there are enough."""
        taken: list[int] = []
        if count and after is not None and after + 1 in self._length_at:
            taken += self._cut(after + 1, count)
        while missing := count - len(taken):
            fitting = [(n, first) for first, n in self._length_at.items() if n >= missing]
            if fitting:
                _, first = min(fitting)
            else:
                first = max(self._length_at, key=lambda f: (self._length_at[f], -f))
            taken += self._cut(first, missing)
        return taken

    def give(self, block: int) -> None:
        """Add a block, joining it to its neighbours."""
        first, last = block, block
        if block - 1 in self._first_at:
            first = self._first_at.pop(block - 1)
            del self._length_at[first]
        if block + 1 in self._length_at:
            last = block + self._length_at.pop(block + 1)
            del self._first_at[last]
        self._put(first, last)
        self.count += 1

    def blocks(self) -> list[int]:
        return [first + i for first, n in self._length_at.items() for i in range(n)]

    def check_integrity(self) -> None:
        assert self.count == sum(self._length_at.values())
        ends = {first + n - 1: first for first, n in self._length_at.items()}
        assert ends == self._first_at
        assert not any(last + 1 in self._length_at for last in ends), "runs touch"

    def _cut(self, first: int, wanted: int) -> list[int]:
        length = self._length_at.pop(first)
        last = first + length - 1
        del self._first_at[last]
        cut = min(length, wanted)
        if cut < length:
            self._put(first + cut, last)
        self.count -= cut
        return list(range(first, first + cut))

    def _put(self, first: int, last: int) -> None:
        self._length_at[first] = last - first + 1
        self._first_at[last] = first
