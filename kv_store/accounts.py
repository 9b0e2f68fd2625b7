"""Whose bytes are in the store, and whose leave first where there is no more room for them.

One account for each owner (the tag with which block names begin). It lists that owner's blocks by
when they expire, which is how long ago they were used, too. Sums follow in the same step, so they
are those of the lists at any time:

    t:{owner}   sorted set: form, size and name of each block, by the time at which it expires (ms)
    used        sorted set: owners by bytes, and "total"
    due         sorted set: owners by when the first of their blocks expires, at the latest
    doomed      sorted set: blocks that had to leave, by when; until their keys are gone as well

A writer charges blocks before it writes them. Where that is too much for the owner's quota, the
owner's least recently used leave; where it is too much for all, those of whoever has most. What has
to leave is named to the writer, which removes the keys first and writes then. Last, it asks what
has had to leave for others meanwhile, and removes that: so what is stored is charged. A block whose
keys the server evicted, or whose writer died, stays on the account until it would have expired or a
sweep holds the accounts against the keys. All times are the server's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from eastwest.blocks import HASH_BYTES, OWNER_BYTES, BlockHash, cache_salt, owner_of
from eastwest.config import StoreConfig
from eastwest.errors import StoreUnavailable
from kv_store.codec import DIGEST_BYTES, BlockForm
from kv_store.guard import raise_refusal
from kv_store.keys import accounts_prefix
from kv_store.pipe import AnyPipe
from kv_store.resp import Command, Reply

# What an account says of a block: its form, bytes and parts, then its name.
_MEMBER = struct.Struct(f">{DIGEST_BYTES}sIH")
MEMBER_BYTES = _MEMBER.size + HASH_BYTES
# A full server has to let accounts be brought up to date: they are what makes room.
# What the server has evicted of the accounts begins anew, with a time to live.
LIBRARY = b"""#!lua flags=allow-oom
local base, time = KEYS[1], redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local used, due, doomed = base .. 'used', base .. 'due', base .. 'doomed'
local function account(owner) return base .. 't:' .. owner end
local function size(member) return struct.unpack('>I4', member:sub(17, 20)) end
local function bytes_of(owner) return tonumber(redis.call('ZSCORE', used, owner) or 0) end
local function last(key, owner)
  if redis.call('PTTL', key) == -1 then
    redis.call('PEXPIRE', key, math.max(60000, redis.call('PTTL', account(owner))))
  end
end
local function add(owner, bytes)
  for _, whose in ipairs({owner, 'total'}) do
    if tonumber(redis.call('ZINCRBY', used, string.format('%.0f', bytes), whose)) <= 0 then
      redis.call('ZREM', used, whose)
    end
  end
  last(used, owner)
end
local function note_due(owner)
  local first = redis.call('ZRANGE', account(owner), 0, 0, 'WITHSCORES')
  if first[2] then redis.call('ZADD', due, first[2], owner); last(due, owner); return end
  redis.call('ZREM', due, owner)
  add(owner, -bytes_of(owner))
end
local function purge()
  local left = 10000
  while left > 0 do
    local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
    if not first[1] or tonumber(first[2]) > now then return 0 end
    local owner, bytes = first[1], 0
    local gone = redis.call('ZRANGEBYSCORE', account(owner), '-inf', now, 'LIMIT', 0, 1000)
    for _, member in ipairs(gone) do bytes = bytes + size(member) end
    if #gone > 0 then redis.call('ZREMRANGEBYRANK', account(owner), 0, #gone - 1) end
    add(owner, -bytes)
    note_due(owner)
    left = left - #gone - 1
  end
  return 1
end
local function live(owner, ttl)
  for _, key in ipairs({account(owner), used, due, doomed}) do
    if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
  end
end
"""
# ARGV: owner, bytes of a block, time to live in ms, quota and budget (0: none), then members. They
# expire one after the other, the last of a chain first: what is left of it is a prefix, then, and
# can be used. Returns the members that have to leave, perhaps some of these.
_CHARGE = (
    LIBRARY
    + b"""
local owner, each, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local quota, budget = tonumber(ARGV[4]), tonumber(ARGV[5])
purge()
local new, out = 0, {}
for i = 6, #ARGV do
  new = new + redis.call('ZADD', account(owner), now + ttl - (i - 6) / 1024, ARGV[i])
end
add(owner, new * each)
local function evict(whose)
  local member = redis.call('ZPOPMIN', account(whose))[1]
  if not member then note_due(whose); return end
  add(whose, -size(member))
  redis.call('ZADD', doomed, now, member)
  out[#out + 1] = member
end
while quota > 0 and #out < 10000 and bytes_of(owner) > quota do evict(owner) end
while budget > 0 and #out < 10000 and bytes_of('total') > budget do
  local most = redis.call('ZREVRANGE', used, 0, 1)
  most = most[1] == 'total' and most[2] or most[1]
  if most and most ~= 'total' then evict(most) else redis.call('DEL', used) end
end
note_due(owner)
live(owner, ttl + 60000)
return out
"""
)
# ARGV: owner, time to live in ms, then members. Returns those that are not charged.
_RENEW = (
    LIBRARY
    + b"""
local owner, ttl, out = ARGV[1], tonumber(ARGV[2]), {}
for i = 3, #ARGV do
  if redis.call('ZADD', account(owner), 'XX', 'CH', now + ttl - (i - 3) / 1024, ARGV[i]) == 0
    and not redis.call('ZSCORE', account(owner), ARGV[i]) then out[#out + 1] = ARGV[i] end
end
live(owner, ttl + 60000)
return out
"""
)
# ARGV: owner, then members. How many of them were charged.
DISCHARGE = (
    LIBRARY
    + b"""
local owner, bytes, gone = ARGV[1], 0, 0
for i = 2, #ARGV do
  if redis.call('ZREM', account(owner), ARGV[i]) == 1 then
    gone, bytes = gone + 1, bytes + size(ARGV[i])
  end
end
add(owner, -bytes)
note_due(owner)
return gone
"""
)


@dataclass(frozen=True, slots=True)
class Quotas:
    """Most bytes in the store, manifests included: of all, of an owner, of certain owners. 0: no
    limit."""

    budget: int = 0
    owner: int = 0
    of: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def of_config(cls, config: StoreConfig) -> Quotas:
        """As the configuration says, in which owners are tenants."""
        budget = config.budget_bytes or 0
        share = int(budget * config.tenant_share)
        limits = [limit for limit in (config.tenant_bytes, share) if limit]
        own = {owner_of(cache_salt(t)): most for t, most in config.tenant_quotas.items()}
        return cls(budget, min(limits, default=0), own)


@dataclass(frozen=True, slots=True)
class Charged:
    """A block on an account. form: the digest of its form. size: in bytes, with the manifest.
    member: what the account says of it."""

    form: bytes
    size: int
    parts: int
    name: BlockHash
    member: bytes

    @property
    def owner(self) -> bytes:
        """Whose it is."""
        return self.name[:OWNER_BYTES]


class Accounts:
    """Of one form of blocks; all forms of a namespace share the accounts."""

    def __init__(self, namespace: str, form: BlockForm, ttl_ms: int, quotas: Quotas) -> None:
        self._base = accounts_prefix(namespace).encode()
        size = form.block_bytes + form.manifest_bytes
        self._digest, self._bytes, self._parts = form.digest, size, len(form.part_bytes)
        self._ttl_ms = b"%d" % ttl_ms
        self._quotas = quotas

    async def charge(self, pipe: AnyPipe, names: Sequence[BlockHash]) -> list[Charged]:
        """Put blocks on their owners' accounts. Returns those that have to leave, some of `names`
        perhaps; see `gone`."""
        quotas, commands = self._quotas, []
        for owner, members in self._by_owner(names):
            limits = (quotas.of.get(owner, quotas.owner), quotas.budget)
            numbers = (b"%d" % self._bytes, self._ttl_ms, *(b"%d" % limit for limit in limits))
            commands.append(self._script(_CHARGE, owner, *numbers, *members))
        replies = await self._ask(pipe, commands)
        return [block for reply in replies for block in _all_charged(reply)]

    async def gone(self, pipe: AnyPipe, left: Sequence[Charged]) -> None:
        """The keys of blocks that had to leave are gone as well."""
        if left:
            members = (block.member for block in left)
            await self._ask(pipe, [Command((b"ZREM", self._base + b"doomed", *members))])

    async def renew(self, pipe: AnyPipe, names: Sequence[BlockHash]) -> list[BlockHash]:
        """Blocks have their full time to live again. Returns those that are not charged."""
        replies = await self._ask(pipe, [
            self._script(_RENEW, owner, self._ttl_ms, *members)
            for owner, members in self._by_owner(names)
        ])  # fmt: skip
        return [block.name for reply in replies for block in _all_charged(reply)]

    async def discharge(self, pipe: AnyPipe, names: Sequence[BlockHash]) -> None:
        """Blocks are not stored any more, or never were. Idempotent."""
        await self._ask(pipe, [
            self._script(DISCHARGE, owner, *members) for owner, members in self._by_owner(names)
        ])  # fmt: skip

    def _by_owner(self, names: Sequence[BlockHash]) -> Iterator[tuple[bytes, list[bytes]]]:
        for owner, own in groupby(names, lambda name: name[:OWNER_BYTES]):
            yield owner, [member_of(self._digest, self._bytes, self._parts, name) for name in own]

    def _script(self, script: bytes, *arguments: bytes) -> Command:
        return Command((b"EVAL", script, b"1", self._base, *arguments))

    async def _ask(self, pipe: AnyPipe, commands: list[Command]) -> list[Reply]:
        replies = await pipe.request(commands, MEMBER_BYTES) if commands else []
        raise_refusal(replies)
        return replies


def account_key(base: bytes, owner: bytes) -> bytes:
    """base: `kv_store.keys.accounts_prefix`."""
    return base + b"t:" + owner


def member_of(form: bytes, size: int, parts: int, name: BlockHash) -> bytes:
    """What an account says of a block."""
    return _MEMBER.pack(form, size, parts) + name


def charged(member: bytes) -> Charged:
    """The block that is meant."""
    form, size, parts = _MEMBER.unpack_from(member)
    return Charged(form, size, parts, BlockHash(member[_MEMBER.size :]), member)


def _all_charged(reply: Reply) -> Iterator[Charged]:
    for member in reply if isinstance(reply, list) else [reply]:
        if not isinstance(member, bytes) or len(member) != MEMBER_BYTES:
            raise StoreUnavailable("the server's accounts are not of a form that is known")
        yield charged(member)
