"""Blocks in Redis or Valkey: complete or absent, and gone after their time to live.

Each block is a few keys (`kv_store.keys`), all with a TTL. It is charged to its owner's account
(`kv_store.accounts`) and then written in one transaction, its manifest last: a full server, a lost
connection or a writer that dies leaves nothing of it. The server may still evict any key at any
time, so a block counts as stored when its manifest is intact and every part has its length, and it
is handed out when every checksum holds as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from eastwest.blocks import BlockHash
from eastwest.errors import CorruptData, Incompatible, StoreUnavailable
from eastwest.ports import Buffer
from kv_store.accounts import Accounts, Charged, Quotas
from kv_store.codec import (
    BlockForm,
    check_length,
    check_manifest,
    check_parts,
    cut,
    encode,
)
from kv_store.guard import Guard, StoreCounters, raise_refusal
from kv_store.keys import MANIFEST, block_stem, blocks_prefix
from kv_store.pipe import AnyPipe, AnyPipes
from kv_store.resp import Command, Landed, Reply, ReplyError

RUN_BYTES = 8 << 20  # of values under way on one connection
LOOKUP_BLOCKS = 512  # in one round trip
FIRST_LOOKUP_BLOCKS = 8  # most prompts are not stored; widened while all of them are

T = TypeVar("T")


class RedisBlockStore:
    """Implements `eastwest.ports.BlockStore`; build with `kv_store.connect.open_block_store`.

    Any number of tasks of one event loop may use it. `read` allocates what it returns and
    nothing else, in one piece: callers bound memory by asking for bounded runs, and memory that
    they have let go of before they ask again is warm.
    """

    def __init__(
        self,
        pipes: AnyPipes,
        guard: Guard,
        counters: StoreCounters,
        form: BlockForm,
        namespace: str,
        ttl_s: float,
        quotas: Quotas,
    ) -> None:
        ttl_ms = max(1, round(ttl_s * 1000))
        self._pipes = pipes
        self._guard = guard
        self._form = form
        self._prefix = blocks_prefix(namespace)
        self._accounts = Accounts(namespace, form, ttl_ms, quotas)
        self._ttl_ms = b"%d" % ttl_ms
        self._run_blocks = max(1, RUN_BYTES // form.block_bytes)
        self.counters = counters

    @property
    def available(self) -> bool:
        """Whether the store answered when it was last asked."""
        return self._guard.available

    async def match(self, hashes: Sequence[BlockHash]) -> int:
        """See the port. Looks at lengths and manifests, not at the bytes of the parts."""
        matched, width = 0, FIRST_LOOKUP_BLOCKS
        async with self._guard.operation(), self._pipes.borrow() as pipe:
            while matched < len(hashes):
                stored = await self._stored(pipe, hashes[matched : matched + width])
                if not all(stored):
                    return matched + stored.index(False)
                matched += len(stored)
                width = min(2 * width, LOOKUP_BLOCKS)
        return matched

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        """See the port. Does not extend the blocks' life: see `touch`."""
        size = self._form.block_bytes
        # What stays untouched of it, after a gap, costs nothing.
        memory = np.empty(len(hashes) * size, np.uint8).data
        places = [memory[i * size : (i + 1) * size] for i in range(len(hashes))]
        blocks: list[Buffer] = []
        async with self._guard.operation(), self._pipes.borrow() as pipe:
            for run in _runs(list(zip(hashes, places, strict=True)), self._run_blocks):
                intact = await self._read_run(pipe, run)
                blocks += intact
                if len(intact) < len(run):
                    break
        self.counters.hits += len(blocks)
        self.counters.misses += len(hashes) - len(blocks)
        self.counters.bytes_read += len(blocks) * size
        return blocks

    async def write(self, blocks: Sequence[tuple[BlockHash, Buffer]]) -> int:
        """See the port. Blocks that are stored already get their full time to live again.

        Raises `InvalidArgument` where a payload has not the length of a block. After
        `StoreUnavailable`, each block is still complete or absent.
        """
        for _, payload in blocks:
            check_length(self._form.block_bytes, payload)
        written = 0
        async with self._guard.operation(), self._pipes.borrow() as pipe:
            for run in _runs(blocks, LOOKUP_BLOCKS):
                written += await self._write_run(pipe, run)
        self.counters.bytes_written += written
        return written

    async def touch(self, hashes: Sequence[BlockHash]) -> None:
        """See the port. Blocks that are not stored are passed over."""
        async with self._guard.operation(), self._pipes.borrow() as pipe:
            for run in _runs(hashes, LOOKUP_BLOCKS):
                commands = [command for name in run for command in self._expire(name)]
                raise_refusal(await pipe.request(commands))
                await self._accounts.renew(pipe, run)

    async def erase(self, hashes: Sequence[BlockHash]) -> None:
        """See the port."""
        async with self._guard.operation(), self._pipes.borrow() as pipe:
            for run in _runs(hashes, LOOKUP_BLOCKS):
                await self._unlink(pipe, run)

    async def close(self) -> None:
        """See the port."""
        await self._pipes.close()

    async def _write_run(self, pipe: AnyPipe, run: Sequence[tuple[BlockHash, Buffer]]) -> int:
        """Bytes that are new."""
        leaving = await self._accounts.charge(pipe, [name for name, _ in run])
        if leaving:
            await self._evict(pipe, leaving)
            left = {block.name for block in leaving if block.form == self._form.digest}
            run = [block for block in run if block[0] not in left]
        names = [name for name, _ in run]
        stored = await self._stored(pipe, names)
        replies = await pipe.request(self._puts(pipe, run, stored))
        if pipe.refused:
            there = await self._stored(pipe, names)
            absent = [name for name, known in zip(names, there, strict=True) if not known]
            await self._accounts.discharge(pipe, absent)
        raise_refusal(replies)
        if others_came := await self._accounts.renew(pipe, names):
            await self._unlink(pipe, others_came)
        return stored.count(False) * self._form.block_bytes

    async def _evict(self, pipe: AnyPipe, leaving: Sequence[Charged]) -> None:
        keys = (self._keys(block.name, block.form, block.parts) for block in leaving)
        raise_refusal(await pipe.request([Command((b"UNLINK", *names)) for names in keys]))
        await self._accounts.gone(pipe, leaving)
        self.counters.evicted += len(leaving)

    async def _unlink(self, pipe: AnyPipe, names: Sequence[BlockHash]) -> None:
        commands = [Command((b"UNLINK", *self._keys(name))) for name in names]
        raise_refusal(await pipe.request(commands))
        await self._accounts.discharge(pipe, names)

    async def _stored(self, pipe: AnyPipe, names: Sequence[BlockHash]) -> list[bool]:
        """Which of the blocks are complete, as far as can be told without reading them."""
        commands = []
        for name in names:
            manifest, *parts = self._keys(name)
            commands.append(Command((b"GET", manifest)))
            commands += [Command((b"STRLEN", part)) for part in parts]
        replies = _answers(await pipe.request(commands, self._form.manifest_bytes))
        stored = []
        for name in names:
            manifest_reply = next(replies)
            lengths = tuple(next(replies) for _ in self._form.part_bytes)
            stored.append(
                lengths == self._form.part_bytes
                and isinstance(manifest_reply, bytes)
                and self._vouches(name, manifest_reply)
            )
        return stored

    def _vouches(self, name: BlockHash, manifest: bytes) -> bool:
        try:
            check_manifest(self._form, name, manifest)
        except (CorruptData, Incompatible):
            return False
        return True

    async def _read_run(
        self, pipe: AnyPipe, run: Sequence[tuple[BlockHash, memoryview]]
    ) -> list[Buffer]:
        """The intact blocks at the head of the run, each received in its place."""
        commands = [command for name, place in run for command in self._get(name, place)]
        replies = _answers(await pipe.request(commands, self._form.manifest_bytes))
        intact: list[Buffer] = []
        for name, place in run:
            found = [next(replies) for _ in range(1 + len(self._form.part_bytes))]
            if None in found:
                break
            try:
                self._check(name, found)
            except Incompatible:
                break
            except CorruptData:
                self.counters.corrupt += 1
                await self._unlink(pipe, [name])
                break
            intact.append(place)
        return intact

    def _check(self, name: BlockHash, found: list[Reply]) -> None:
        manifest, *parts = found
        checksums = [part.checksum for part in parts if isinstance(part, Landed)]
        if len(checksums) < len(parts) or not isinstance(manifest, bytes):
            raise CorruptData(f"a value of block {name.hex()} has not the length of its form")
        check_parts(self._form, name, manifest, checksums)

    def _keys(self, name: BlockHash, form: bytes = b"", parts: int = 0) -> list[bytes]:
        """The manifest's key, then those of the parts. form, parts: its own unless others are
        given."""
        form, parts = form or self._form.digest, parts or len(self._form.part_bytes)
        stem = f"{self._prefix}{form.hex()}:{block_stem(name)}"
        suffixes = (MANIFEST, *(f":{part}" for part in range(parts)))
        return [(stem + suffix).encode() for suffix in suffixes]

    def _get(self, name: BlockHash, place: memoryview) -> list[Command]:
        manifest, *keys = self._keys(name)
        parts = zip(keys, cut(self._form, place), strict=True)
        return [
            Command((b"GET", manifest)),
            *(Command((b"GET", key), into=part) for key, part in parts),
        ]

    def _puts(
        self, pipe: AnyPipe, run: Sequence[tuple[BlockHash, Buffer]], stored: Sequence[bool]
    ) -> Iterator[Command]:
        """Drawn from while earlier blocks are on their way; ends early once one is refused."""
        for (name, payload), known in zip(run, stored, strict=True):
            if pipe.refused:
                return
            if known:
                yield from self._expire(name)
                continue
            block = encode(self._form, name, payload)
            manifest, *keys = self._keys(name)
            yield Command((b"MULTI",))
            for key, part in zip(keys, block.parts, strict=True):
                yield Command((b"SET", key, part, b"PX", self._ttl_ms))
            yield Command((b"SET", manifest, block.manifest, b"PX", self._ttl_ms))
            yield Command((b"EXEC",))

    def _expire(self, name: BlockHash) -> list[Command]:
        return [Command((b"PEXPIRE", key, self._ttl_ms)) for key in self._keys(name)]


def _runs(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _answers(replies: list[Reply]) -> Iterator[Reply]:
    """The replies. A key of another type is as good as a wrong value; other errors are refusals."""
    for reply in replies:
        if isinstance(reply, ReplyError) and reply.code != "WRONGTYPE":
            raise StoreUnavailable(f"the store refused: {reply.text}")
        yield reply
