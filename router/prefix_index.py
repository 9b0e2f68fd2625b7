"""Who holds which KV block: for a chain of hashes, how many leading blocks each holder has.

Hashes are chained, each covering all tokens before it, so a table from hash to holders needs no
tree. A holder is one incarnation of a worker, or the offline store; it has a pair of bits, one for
DEVICE and one for HOST, and the value of a hash is the union of the bits of all who hold it.
The key is the whole hash: a lookup is never wrong about what it was told. It may be late, so it
is a hint for placement and nothing else; what a worker shares or loads, it looks up itself.

At most `blocks_max` hashes are kept. Beyond that the oldest are forgotten, but for those that were
asked for since: they become the youngest (second chance, CLOCK).

A holder that leaves is not answered for any more at once; its bits are swept out of the table a
shard at a time, as it changes, and given to a new holder afterwards. So no call takes time that
grows with the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from eastwest.blocks import BlockHash
from eastwest.types import Tier

_SHARDS = 256
# Of a shard, that are forgotten at a time: finding the oldest costs a walk over former ones.
_EVICTED_SHARE = 64
# Holders that may wait to be swept; one more, and all are swept at once.
_GONE_MAX = 64
# Bits 0 and 1: a flag, which no holder has.
_ASKED = 1
_FIRST_BIT = 2


class Holder:
    """Somebody who holds blocks; made by `PrefixIndex.join`, compared by identity."""

    __slots__ = ("bit",)

    def __init__(self, bit: int) -> None:
        self.bit = bit


class PrefixIndex:
    """See the module. blocks_max: hashes that are kept, at most."""

    def __init__(self, blocks_max: int) -> None:
        assert blocks_max > 0
        shards = _SHARDS
        while shards > blocks_max:
            shards //= 2
        self._spread = shards - 1
        self._shard_max = blocks_max // shards
        self._shards: list[dict[BlockHash, int]] = [{} for _ in range(shards)]
        self._holders: dict[int, Holder] = {}  # by the number of the DEVICE bit
        self._live = 0  # DEVICE bits of those who have not left
        self._free: list[int] = []
        self._next = _FIRST_BIT
        self._hosts = False
        self._gone: list[int] = []
        self._sweeping: list[int] = []
        self._swept_shards = 0

    def __len__(self) -> int:
        """Hashes in the table, those of holders not swept yet included."""
        return sum(map(len, self._shards))

    # Who.

    def join(self) -> Holder:
        """A new holder, of nothing."""
        if self._free:
            bit = self._free.pop()
        else:
            bit, self._next = self._next, self._next + 2
        holder = self._holders[bit] = Holder(bit)
        self._live |= 1 << bit
        return holder

    def leave(self, holder: Holder) -> None:
        """Forget the holder with all that it has; it must not be used any more."""
        assert self._holders.pop(holder.bit, None) is holder, "the holder has left"
        self._live &= ~(1 << holder.bit)
        self._gone.append(holder.bit)
        if len(self._gone) > _GONE_MAX:
            while self.sweep():
                pass

    # What.

    def add(self, holder: Holder, hashes: Sequence[BlockHash], tier: Tier = Tier.DEVICE) -> None:
        """The holder has these blocks on this tier. Idempotent."""
        self.sweep()
        mask, shards, spread = self._mask(holder, tier), self._shards, self._spread
        self._hosts = self._hosts or tier is Tier.HOST
        most = self._shard_max
        for block_hash in hashes:
            shard = shards[block_hash[-1] & spread]
            shard[block_hash] = shard.get(block_hash, 0) | mask
            if len(shard) > most:
                _evict(shard, max(1, most // _EVICTED_SHARE))

    def remove(self, holder: Holder, hashes: Sequence[BlockHash], tier: Tier = Tier.DEVICE) -> None:
        """The holder has these blocks on this tier no more. Unknown ones are fine."""
        self.sweep()
        keep = ~self._mask(holder, tier)
        for block_hash in hashes:
            shard = self._shards[block_hash[-1] & self._spread]
            mask = shard.get(block_hash)
            if mask is not None:
                _put(shard, block_hash, mask & keep)

    def sweep(self) -> bool:
        """Take those who have left out of one shard; False where none are left to sweep."""
        if not self._sweeping:
            if not self._gone:
                return False
            self._sweeping, self._gone, self._swept_shards = self._gone, [], 0
        shard = self._shards[self._swept_shards]
        left = sum(0b11 << bit for bit in self._sweeping)
        for block_hash in [h for h, mask in shard.items() if mask & left]:
            _put(shard, block_hash, shard[block_hash] & ~left)
        self._swept_shards += 1
        if self._swept_shards == len(self._shards):
            self._free += self._sweeping
            self._sweeping = []
        return True

    # Questions.

    def match(self, hashes: Sequence[BlockHash]) -> dict[Holder, int]:
        """How many leading blocks of the chain each holder has, on either tier; at least one.

        The blocks found are marked as asked for.
        """
        found: dict[Holder, int] = {}
        shards, spread, hosts, alive = self._shards, self._spread, self._hosts, self._live
        length = 0
        for block_hash in hashes:
            shard = shards[block_hash[-1] & spread]
            mask = shard.get(block_hash)
            if mask is None:
                break
            if not mask & _ASKED:
                shard[block_hash] = mask | _ASKED
            if hosts:
                mask |= mask >> 1
            still = alive & mask
            if still != alive:
                if length:
                    self._note(found, alive ^ still, length)
                alive = still
                if not alive:
                    return found
            length += 1
        if length:
            self._note(found, alive, length)
        return found

    def holders(self, block_hash: BlockHash) -> dict[Holder, tuple[Tier, ...]]:
        """Who holds a block, and on which tiers."""
        mask = self._shards[block_hash[-1] & self._spread].get(block_hash, 0)
        return {
            holder: tuple(t for t, shift in _SHIFTS.items() if mask >> (bit + shift) & 1)
            for bit, holder in self._holders.items()
            if mask >> bit & 0b11
        }

    def check_integrity(self) -> None:
        """Assert that the table keeps its bounds and speaks of known holders only."""
        bits = [*self._holders, *self._gone, *self._sweeping, *self._free]
        assert sorted(bits) == list(range(_FIRST_BIT, self._next, 2))
        assert self._live == sum(1 << bit for bit in self._holders)
        known = sum(0b11 << bit for bit in bits if bit not in self._free)
        for shard in self._shards:
            assert len(shard) <= self._shard_max
            for mask in shard.values():
                assert mask & ~_ASKED, "a hash that nobody holds"
                assert not mask & ~(known | _ASKED), "a bit of nobody"

    def _note(self, found: dict[Holder, int], bits: int, length: int) -> None:
        """Those of `bits` have the first `length` blocks, and not the next."""
        while bits:
            lowest = bits & -bits
            found[self._holders[lowest.bit_length() - 1]] = length
            bits ^= lowest

    def _mask(self, holder: Holder, tier: Tier) -> int:
        assert self._holders.get(holder.bit) is holder, "the holder has left"
        return 1 << (holder.bit + _SHIFTS[tier])


_SHIFTS = {Tier.DEVICE: 0, Tier.HOST: 1}


def _put(shard: dict[BlockHash, int], block_hash: BlockHash, mask: int) -> None:
    if mask & ~_ASKED:
        shard[block_hash] = mask
    else:
        del shard[block_hash]


def _evict(shard: dict[BlockHash, int], count: int) -> None:
    """Forget `count` of the `2 * count` oldest; what was asked for is spared as far as the others
    suffice, and becomes the youngest."""
    oldest = list(islice(shard.items(), 2 * count))
    spared = [(h, mask) for h, mask in oldest if mask & _ASKED][: len(oldest) - count]
    kept = dict(spared)
    for block_hash, _ in [item for item in oldest if item[0] not in kept][:count]:
        del shard[block_hash]
    for block_hash, mask in spared:
        del shard[block_hash]
        shard[block_hash] = mask & ~_ASKED
