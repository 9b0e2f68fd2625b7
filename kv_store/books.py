"""The accounts of a store, read and held against its keys: for operators, beside those who write.

What writers do and what stays behind, see `kv_store.accounts`. Settling is sound while they go on:
an entry is struck off only where its block was not there for longer than a write takes, and a sum
is set only where the list has not changed since it was added up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eastwest.blocks import OWNER_BYTES
from kv_store.accounts import DISCHARGE, LIBRARY, MEMBER_BYTES, Charged, account_key, charged
from kv_store.keys import accounts_prefix

Ask = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]

_BATCH = 500
# 1 while there may be more that has expired.
_PURGE = LIBRARY + b"return purge()"
# ARGV: owner, bytes of a block, its member, and its time to live in ms. 1 where it was not charged.
_ADD = (
    LIBRARY
    + b"""
local owner, bytes, member, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('ZADD', account(owner), 'NX', now + ttl, member) == 0 then return 0 end
add(owner, bytes)
note_due(owner)
live(owner, ttl + 60000)
return 1
"""
)
# ARGV: owner, how many blocks it has, and their bytes. 1 where the sum was another.
_RECOUNT = (
    LIBRARY
    + b"""
local owner, bytes = ARGV[1], tonumber(ARGV[3])
local wrong = bytes_of(owner) ~= bytes
if wrong and redis.call('ZCARD', account(owner)) == tonumber(ARGV[2]) then
  add(owner, bytes - bytes_of(owner))
  live(owner, redis.call('PTTL', account(owner)))
end
local sum, all = 0, redis.call('ZRANGE', used, 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  if all[i] ~= 'total' then sum = sum + tonumber(all[i + 1]) end
end
if sum > 0 then redis.call('ZADD', used, sum, 'total') else redis.call('ZREM', used, 'total') end
return wrong and 1 or 0
"""
)


@dataclass(frozen=True, slots=True)
class OwnerUse:
    """What is on an owner's account."""

    blocks: int
    bytes: int


class Books:
    """Of one namespace. ask: sends commands, and returns the replies."""

    def __init__(self, ask: Ask, namespace: str) -> None:
        self._ask = ask
        self._base = accounts_prefix(namespace).encode()

    async def uses(self) -> dict[str, OwnerUse]:
        """By owner's tag, in hex; without what has expired."""
        while (await self._run([(_PURGE,)]))[0]:
            pass
        (used,) = await self._ask([("ZRANGE", self._base + b"used", 0, -1, "WITHSCORES")])
        sums = {tag: int(float(score)) for tag, score in _pairs(used) if len(tag) == OWNER_BYTES}
        cards = await self._ask([("ZCARD", account_key(self._base, tag)) for tag in sums])
        return {
            tag.hex(): OwnerUse(card, size)
            for (tag, size), card in zip(sums.items(), cards, strict=True)
        }

    async def doomed(self) -> int:
        """Blocks that had to leave, whose keys are there yet perhaps."""
        (count,) = await self._ask([("ZCARD", self._base + b"doomed")])
        return int(count)

    async def listed(self, owners: Iterable[bytes]) -> dict[bytes, bytes]:
        """Members of the accounts, with whose they are."""
        found: dict[bytes, bytes] = {}
        for owner in owners:
            (members,) = await self._ask([("ZRANGE", account_key(self._base, owner), 0, -1)])
            found.update((m, owner) for m in members or () if len(m) == MEMBER_BYTES)
        return found

    async def discharge(self, members: Iterable[bytes]) -> int:
        """Blocks are not stored any more. How many were charged."""
        scripts = [(DISCHARGE, charged(member).owner, member) for member in members]
        return sum(await self._run(scripts))

    async def settle(
        self,
        listed: Mapping[bytes, bytes],
        there: Mapping[bytes, int],
        write_s: float,
        keys_of: Callable[[Charged], list[bytes]],
    ) -> int:
        """Make the accounts say what is stored; how many entries and sums were not so.

        listed: as `listed` said before the keys were looked at. there: members of the blocks that
        were found whole, with their times to live in ms. write_s: longest time between a charge and
        the write. keys_of: a block's keys, its manifest's first.
        """
        missing = [member for member in listed if member not in there]
        (doomed,) = await self._ask([("ZRANGE", self._base + b"doomed", 0, -1)])
        if missing or doomed:
            await asyncio.sleep(write_s)  # whoever was about to write has done it
        wrong = await self._strike_off(missing, keys_of)
        left = await self._finish(doomed or [], keys_of)
        for batch in _batches([m for m in there if m not in listed and m not in left]):
            blocks = [charged(member) for member in batch]
            wrong += sum(await self._run([
                (_ADD, block.owner, block.size, block.member, there[block.member])
                for block in blocks
            ]))  # fmt: skip
        owners = {*listed.values(), *(charged(member).owner for member in there)}
        return wrong + await self._recount(owners)

    async def _strike_off(
        self, members: Sequence[bytes], keys_of: Callable[[Charged], list[bytes]]
    ) -> int:
        gone = 0
        for batch in _batches(members):
            blocks = [charged(member) for member in batch]
            exist = await self._ask([("EXISTS", *keys_of(block)) for block in blocks])
            gone += await self.discharge(
                member for member, there in zip(batch, exist, strict=True) if not there
            )
        return gone

    async def _finish(
        self, members: Sequence[bytes], keys_of: Callable[[Charged], list[bytes]]
    ) -> set[bytes]:
        """Remove what had to leave, where its writer has not and nobody has charged it again."""
        removed: set[bytes] = set()
        for batch in _batches([m for m in members if len(m) == MEMBER_BYTES]):
            blocks = [charged(member) for member in batch]
            scores = await self._ask([
                ("ZSCORE", account_key(self._base, block.owner), block.member) for block in blocks
            ])  # fmt: skip
            left = [b for b, score in zip(blocks, scores, strict=True) if score is None]
            await self._ask([("UNLINK", *keys_of(block)) for block in left])
            await self._ask([("ZREM", self._base + b"doomed", *batch)])
            removed.update(block.member for block in left)
        return removed

    async def _recount(self, owners: Iterable[bytes]) -> int:
        wrong = 0
        for owner in owners:
            members = await self.listed([owner])
            total = sum(charged(member).size for member in members)
            wrong += (await self._run([(_RECOUNT, owner, len(members), total)]))[0]
        return wrong

    async def _run(self, scripts: Sequence[tuple[Any, ...]]) -> list[Any]:
        return await self._ask(
            [("EVAL", script, 1, self._base, *args) for script, *args in scripts]
        )


def _pairs(reply: Sequence[Any] | None) -> list[tuple[bytes, bytes]]:
    items = list(reply or ())
    if items and isinstance(items[0], (tuple, list)):
        return [(name, score) for name, score in items]
    return list(zip(items[::2], items[1::2], strict=True))


def _batches(items: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
