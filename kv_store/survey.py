"""What a namespace holds on its server, whoever wrote it: for operators, apart from serving.

A survey scans the keys once and then looks at blocks in batches, so it sees each block at some time
of its run, beside those who read and write. It knows blocks by what their manifests say of
themselves, and needs no model. Sweeping asks the server again for each block in one step, so that
what has been written meanwhile stays.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError
from xxhash import xxh3_64_intdigest

from eastwest.errors import ConfigError, CorruptData, Incompatible, StoreUnavailable
from kv_store.accounts import Charged, member_of
from kv_store.address import StoreAddress
from kv_store.books import Books, OwnerUse
from kv_store.codec import DIGEST_BYTES, Manifest, read_manifest
from kv_store.keys import (
    MANIFEST,
    account_owner,
    accounts_prefix,
    block_stem,
    blocks_prefix,
    named_block,
)
from kv_store.sessions import SESSION_FORMAT

_BATCH = 256  # blocks that are looked at in one round trip
_MANIFEST_BYTES_MAX = 1 << 16
_SCAN = 1000
# KEYS: a block's manifest, then its parts. ARGV: the manifest as it was seen, "" for none, and the
# lengths that it names, in the order of KEYS. How many keys were removed: none where the block has
# been written since.
_SWEEP = """
local manifest = redis.pcall('GET', KEYS[1])
if type(manifest) ~= 'string' then manifest = '' end
if manifest ~= ARGV[1] then return 0 end
local whole = #ARGV > 1
for i = 2, #ARGV do
  whole = whole and redis.pcall('STRLEN', KEYS[i]) == tonumber(ARGV[i])
end
if whole then return 0 end
return redis.call('UNLINK', unpack(KEYS))
"""


@dataclass(slots=True)
class FormUse:
    """Blocks of one model in one form. block_tokens: of each. soonest_s, latest_s: until the first
    and the last of them is gone, unless it is used again."""

    blocks: int = 0
    bytes: int = 0
    block_tokens: int = 0
    soonest_s: float = 0.0
    latest_s: float = 0.0


@dataclass(slots=True)
class Usage:
    """forms: by digest, of this version of the format. owners: what is on their accounts, by tag.
    doomed: blocks that left an account and perhaps not yet the store. incomplete: blocks that lack
    something, and count as absent. other: keys of the namespace that are of another version, or
    nobody's. unending: keys without a time to live; none of ours is. Server's memory in bytes; its
    limit is 0 for none."""

    forms: dict[str, FormUse] = field(default_factory=dict)
    owners: dict[str, OwnerUse] = field(default_factory=dict)
    doomed: int = 0
    incomplete: int = 0
    incomplete_bytes: int = 0
    sessions: int = 0
    session_bytes: int = 0
    other: int = 0
    unending: int = 0
    server: str = ""
    memory: int = 0
    memory_max: int = 0
    eviction: str = ""
    evicted: int = 0

    @property
    def payload(self) -> int:
        """Bytes of blocks and sessions, without what the server adds."""
        return sum(form.bytes for form in self.forms.values()) + self.session_bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """blocks: whose every byte was read. damaged: what is wrong with those that do not hold, by
    names. unfinished: that vanished meanwhile, or lack something."""

    blocks: int
    bytes: int
    damaged: dict[str, str]
    unfinished: int


@dataclass(frozen=True, slots=True)
class Swept:
    """Keys removed, and the bytes that they had. settled: entries and sums of the accounts that
    were not those of what is stored."""

    keys: int
    bytes: int
    settled: int = 0


@dataclass(frozen=True, slots=True)
class _Block:
    """One block as it was found. lengths: of the parts that are there, by their keys. manifest:
    None where there is no intact one of this version. why: what it lacks; "" for nothing, or where
    that cannot be told, since it is of another version."""

    form: str
    name: str
    manifest_key: bytes
    raw: bytes
    manifest: Manifest | None
    lengths: dict[bytes, int]
    ttl_ms: int
    why: str

    @property
    def bytes(self) -> int:
        return sum(self.lengths.values()) + len(self.raw)


class Survey:
    """Of one namespace; use `surveying`. Raises `StoreUnavailable` where the server does not
    answer."""

    def __init__(self, client: Redis | RedisCluster, namespace: str, write_s: float) -> None:
        self._client = client
        self._write_s = write_s
        self._namespace = namespace.encode()
        self._books = Books(self._ask, namespace)
        self._accounts = accounts_prefix(namespace).encode()
        self._blocks = blocks_prefix(namespace).encode()
        self._sessions = b"%s:s%d:" % (self._namespace, SESSION_FORMAT)
        self._listings = b"%s:l%d:" % (self._namespace, SESSION_FORMAT)

    async def usage(self) -> Usage:
        """What there is, and how much of it."""
        usage, keys = Usage(), await self._scan()
        await self._describe_server(usage)
        sessions = [key for key in keys.others if key.startswith(self._sessions)]
        ours = (self._sessions, self._listings, self._accounts)
        usage.owners, usage.doomed = await self._books.uses(), await self._books.doomed()
        usage.other = sum(not key.startswith(ours) for key in keys.others)
        usage.sessions = len(sessions)
        for batch in _batches(sessions):
            lengths = await self._ask([("STRLEN", key) for key in batch])
            usage.session_bytes += sum(n for n in lengths if isinstance(n, int))
        for batch in _batches(keys.others):
            ttls = await self._ask([("PTTL", key) for key in batch])
            usage.unending += sum(ttl == -1 for ttl in ttls)
        async for block in self._look(keys):
            usage.unending += block.ttl_ms == -1
            if block.why:
                usage.incomplete += 1
                usage.incomplete_bytes += block.bytes
                continue
            if block.manifest is None:
                usage.other += 1 + len(block.lengths)
                continue
            form = usage.forms.setdefault(block.form, FormUse())
            left_s = max(0, block.ttl_ms) / 1e3
            form.soonest_s = min(form.soonest_s, left_s) if form.blocks else left_s
            form.latest_s = max(form.latest_s, left_s)
            form.block_tokens = block.manifest.block_tokens
            form.blocks += 1
            form.bytes += block.bytes
        return usage

    async def verify(self, *, remove: bool) -> Verified:
        """Read every block, and hold it against its manifest. remove: those that do not match."""
        checked = size = unfinished = 0
        damaged: dict[str, str] = {}
        async for block in self._look(await self._scan()):
            if block.manifest is None or block.why:
                unfinished += 1
                continue
            keys = _part_keys(block.manifest_key, block.manifest)
            parts = await self._ask([("GET", key) for key in keys])
            if None in parts:
                unfinished += 1
                continue
            checked += 1
            size += block.bytes
            named = zip(block.manifest.parts, parts, strict=True)
            bad = [i for i, (part, data) in enumerate(named) if not _is(part, data)]
            if bad:
                damaged[f"{block.form}:{block.name}"] = f"part {bad[0]} is not what was written"
                if remove:
                    await self._remove(block)
        return Verified(checked, size, damaged, unfinished)

    async def claim(self, interval_s: float) -> bool:
        """Whether it is this one's turn to sweep: nobody else's has been for the interval."""
        key, life_ms = self._accounts + b"sweeper", max(1, int(1000 * interval_s))
        return bool((await self._ask([("SET", key, 1, "NX", "PX", life_ms)]))[0])

    async def sweep(self) -> Swept:
        """Remove what is left of blocks that are not whole, and settle the accounts."""
        scanned = await self._scan()
        owners = (account_owner(self._accounts, key) for key in scanned.others)
        listed = await self._books.listed(owner for owner in owners if owner is not None)
        keys = size = 0
        there: dict[bytes, int] = {}
        async for block in self._look(await self._scan()):
            if not block.why:
                if block.manifest is not None:
                    there[_member(block, block.manifest)] = block.ttl_ms
                continue
            named, lengths = [], []
            if block.manifest is not None:
                named = _part_keys(block.manifest_key, block.manifest)
                lengths = [length for length, _ in block.manifest.parts]
            names = [block.manifest_key, *dict.fromkeys((*named, *block.lengths))]
            removed = await self._ask([("EVAL", _SWEEP, len(names), *names, block.raw, *lengths)])
            if removed[0]:
                keys += removed[0]
                size += block.bytes
        keys_of = self._keys_of
        settled = await self._books.settle(listed, there, self._write_s, keys_of)
        return Swept(keys, size, settled)

    def _keys_of(self, block: Charged) -> list[bytes]:
        stem = b"%s%s:%s" % (
            self._blocks,
            block.form.hex().encode(),
            block_stem(block.name).encode(),
        )
        return [stem + MANIFEST.encode(), *(b"%s:%d" % (stem, part) for part in range(block.parts))]

    async def drop(self, form: str) -> Swept:
        """Remove all blocks of one form, such as those of a model that is served no more. Raises
        `ConfigError` where there are none."""
        if not re.fullmatch(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}", form):
            raise ConfigError(f"{form!r} is no form; see 'eastwest store status'")
        keys = size = 0
        async for block in self._look(await self._scan(form)):
            keys += await self._remove(block)
            size += block.bytes
        if not keys:
            raise ConfigError(f"no block has the form {form!r}; see 'eastwest store status'")
        return Swept(keys, size)

    async def _remove(self, block: _Block) -> int:
        """How many keys that were."""
        removed = await self._ask([("UNLINK", block.manifest_key, *block.lengths)])
        if block.manifest is not None:
            await self._books.discharge([_member(block, block.manifest)])
        return int(removed[0])

    async def _scan(self, form: str = "") -> _Keys:
        within = self._blocks + form.encode() + b":" if form else self._namespace + b":"
        keys = _Keys()
        with _answering():
            async for key in self._client.scan_iter(match=within + b"*", count=_SCAN):
                keys.add(key, self._blocks)
        return keys

    async def _look(self, keys: _Keys) -> AsyncIterator[_Block]:
        """Each block, as it is now; those that are gone by now are passed over."""
        for batch in _batches(list(keys.blocks)):
            names = []
            commands: list[tuple[Any, ...]] = []
            for stem in batch:
                manifest = self._blocks + stem + b":m"
                parts = [self._blocks + stem + b":" + n for n in keys.blocks[stem]]
                names.append((stem, manifest, parts))
                commands.append(("GETRANGE", manifest, 0, _MANIFEST_BYTES_MAX))
                commands.append(("PTTL", manifest))
                commands += [("STRLEN", part) for part in parts]
            replies = iter(await self._ask(commands))
            for stem, manifest, parts in names:
                raw, ttl_ms = next(replies), next(replies)
                found = {part: next(replies) for part in parts}
                lengths = {part: n for part, n in found.items() if n}
                if raw or lengths:
                    yield _block(stem, manifest, raw, lengths, ttl_ms)

    async def _describe_server(self, usage: Usage) -> None:
        with _answering():
            info = await self._client.info()
        usage.server = f"{info.get('server_name', 'redis')} " + str(
            info.get("valkey_version") or info.get("redis_version", "")
        )
        usage.memory = int(info.get("used_memory", 0))
        usage.memory_max = int(info.get("maxmemory", 0))
        usage.eviction = str(info.get("maxmemory_policy", ""))
        usage.evicted = int(info.get("evicted_keys", 0))

    async def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies. A key of another type is as good as one without contents."""
        with _answering():
            async with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies = await pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
                raise StoreUnavailable(f"the store refused: {reply}")
        return [b"" if isinstance(reply, Exception) else reply for reply in replies]


class _Keys:
    """blocks: by their form and name, the numbers of the parts that there are."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, list[bytes]] = {}
        self.others: list[bytes] = []

    def add(self, key: bytes, prefix: bytes) -> None:
        stem, _, last = key[len(prefix) :].rpartition(b":")
        if (
            not key.startswith(prefix)
            or named_block(stem.decode("ascii", "replace")) is None
            or not (last.isdigit() or last == b"m")
        ):
            self.others.append(key)
            return
        parts = self.blocks.setdefault(stem, [])
        if last != b"m" and last not in parts:
            parts.append(last)


@asynccontextmanager
async def surveying(
    url: str, namespace: str, timeout_s: float, write_s: float, password_file: Path | None = None
) -> AsyncIterator[Survey]:
    """A survey over a connection of its own. write_s: the writers' `store.timeout_s`. Raises
    `ConfigError` for a URL that cannot be used."""
    client = StoreAddress.parse(url, password_file).client(timeout_s)
    try:
        yield Survey(client, namespace, write_s)
    finally:
        await client.aclose()


def _block(
    stem: bytes, manifest_key: bytes, raw: bytes, lengths: dict[bytes, int], ttl_ms: int
) -> _Block:
    named = named_block(stem.decode("ascii"))
    assert named is not None  # or it would not count as a block's
    form, name = named
    manifest, why = None, ""
    try:
        manifest = read_manifest(raw)
    except Incompatible:
        pass
    except CorruptData as error:
        why = error.message
    if manifest is not None:
        keys = _part_keys(manifest_key, manifest)
        if (manifest.form.hex(), manifest.block_hash) != (form, name):
            manifest, why = None, "a manifest of another block"
        elif any(lengths.get(k) != n for k, (n, _) in zip(keys, manifest.parts, strict=True)):
            why = "a part that is missing, or of another length"
    return _Block(form, name.hex(), manifest_key, raw, manifest, lengths, ttl_ms, why)


def _member(block: _Block, manifest: Manifest) -> bytes:
    """What an account says of it."""
    return member_of(manifest.form, block.bytes, len(manifest.parts), manifest.block_hash)


def _part_keys(manifest_key: bytes, manifest: Manifest) -> list[bytes]:
    """Of all parts that the manifest names, in order."""
    return [b"%s:%d" % (manifest_key[:-2], part) for part in range(len(manifest.parts))]


def _is(part: tuple[int, int], data: object) -> bool:
    length, checksum = part
    return isinstance(data, bytes) and len(data) == length and xxh3_64_intdigest(data) == checksum


def _batches(items: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (OSError, RedisError) as error:
        raise StoreUnavailable(f"the store does not answer: {error}") from error
