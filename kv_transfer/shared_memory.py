"""KV written straight into the reserved blocks of a rank on the same host.

The receiving rank keeps its paged KV in a `SharedPool`: a file without a name, which its process
holds, which others open through that process's ``/proc`` entry, and which is gone when the last
process that holds or maps it is. A sender maps it once for each incarnation. What it writes is
fenced (`kv_transfer.fence`); the receiver hears of it by a frame in place, and checks what lies in
its blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import re
from dataclasses import replace

import numpy as np

from eastwest.errors import ConfigError, Phase, TransferFailed
from eastwest.in_thread import in_thread
from eastwest.layout import shard_of
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.paged_kv import Bytes, PagedKV, pool_bytes
from kv_transfer.fence import SEALS, FenceTable, Gate, TableFence, sealed
from kv_transfer.frame_codec import Header, Message, checksum_seed, encode_in_place
from kv_transfer.transport import Outgoing

# Mapped pools that no transfer uses are kept for the next one, up to so many.
POOLS_MAX = 64
_DESCRIPTOR = re.compile(r"shm1:(\d{1,10}):(\d{1,10}):(\d{1,10}):([0-9a-f]{32})")


class SharedPool:
    """Memory for the paged KV of one rank, zeros at first, that senders on this host can map. Is a
    `Target`.

    buffer: writable, valid while somebody refers to it.
    """

    def __init__(self, size: int) -> None:
        """Raises `ConfigError` where the host has not so much memory to share."""
        self._fd = os.memfd_create("eastwest-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Taken at once: running out while a page is first written would kill the writer.
            os.posix_fallocate(self._fd, 0, size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, SEALS)
            self.buffer = memoryview(mmap.mmap(self._fd, size))
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(
                f"{size} bytes of KV cannot be put into shared memory: {error.strerror}; allowed: "
                f"what the host has free"
            ) from error
        self.fence = TableFence(self._fd)
        nonce = self.fence.nonce.hex()
        self.descriptor = f"shm1:{os.getpid()}:{self._fd}:{self.fence.fd}:{nonce}"

    def shut(self) -> None:
        """See `Target.shut`."""
        if self._fd >= 0:
            self.fence.shut()
            os.close(self._fd)
            self._fd = -1


class MappedPool:
    """Another process's `SharedPool`, as a sender sees it. Raises `TransferFailed` where it is
    not there, or not what it claims to be.

    memory: the whole of it. process: becomes readable when the receiver's process has ended.
    """

    def __init__(self, descriptor: str) -> None:
        parts = _DESCRIPTOR.fullmatch(descriptor)
        if parts is None:
            raise _failed(f"{descriptor!r} names no shared pool")
        pid, pool_fd, fence_fd = (int(part) for part in parts.groups()[:3])
        with contextlib.ExitStack() as opened:
            try:
                self.process = os.pidfd_open(pid)
                opened.callback(os.close, self.process)
                self.table = FenceTable(_open(pid, fence_fd, os.O_RDONLY, opened))
                pool = _open(pid, pool_fd, os.O_RDWR, opened)
                # This also tells that the process and its numbers are still the same.
                self.table.check(bytes.fromhex(parts[4]), pool)
                if not sealed(pool):
                    raise _failed("the pool can change its size")
                self.memory = np.frombuffer(mmap.mmap(pool, os.fstat(pool).st_size), np.uint8)
            except OSError as error:
                raise _failed(f"process {pid} shares no such memory: {error.strerror}") from error
            opened.pop_all()
        os.close(pool)

    def close(self) -> None:
        """The mapping goes with the last view of it."""
        self.table.close()
        os.close(self.process)


class SharedMemory:
    """The `TransportProvider` of one sender. Used on one event loop.

    A pool stays mapped until its process ends, or others were used more recently.
    """

    transport = Transport.SHARED_MEMORY

    def __init__(self) -> None:
        self._pools: dict[str, MappedPool] = {}  # by descriptor; the last one used comes last

    def deliver(self, ticket: Ticket, endpoint: RankEndpoint) -> SharedMemoryDelivery:
        """See `TransportProvider.deliver`."""
        descriptor = endpoint.memory
        pool = self._pools.pop(descriptor, None)
        if pool is None:
            pool = MappedPool(descriptor)
            asyncio.get_running_loop().add_reader(pool.process, self._forget, descriptor)
        self._pools[descriptor] = pool
        while len(self._pools) > POOLS_MAX:
            self._forget(next(iter(self._pools)))
        kv = _geometry(pool.memory, ticket, endpoint)
        return SharedMemoryDelivery(kv, ticket, pool.table.gate(ticket.transfer_id))

    def close(self) -> None:
        """See `TransportProvider.close`."""
        for descriptor in list(self._pools):
            self._forget(descriptor)

    def _forget(self, descriptor: str) -> None:
        pool = self._pools.pop(descriptor)
        asyncio.get_running_loop().remove_reader(pool.process)
        pool.close()


class SharedMemoryDelivery:
    """Is a `Delivery`: copies a region while its blocks are held."""

    def __init__(self, pool: PagedKV, ticket: Ticket, gate: Gate) -> None:
        self._pool = pool
        self._first_block = ticket.first_block
        self._blocks = np.array(ticket.blocks, np.intp)
        self._gate = gate

    async def pack(self, header: Header, outgoing: Outgoing) -> Message:
        """See `Delivery.pack`."""
        header, region = replace(header, in_place=True), header.region
        first = self._first_block
        blocks = self._blocks[region.blocks.start - first : region.blocks.stop - first]
        what = self._pool, blocks, region, checksum_seed(header)
        with self._gate.writing():
            if outgoing.converts:
                checksum = await in_thread(outgoing.copy_to, *what)
            else:
                checksum = outgoing.copy_to(*what)
        return (encode_in_place(header, checksum),)

    def settle(self) -> None:
        """See `Delivery.settle`. The gate is held during a `pack` only."""

    async def close(self) -> None:
        """See `Delivery.close`."""
        self._gate.close()


def _geometry(memory: Bytes, ticket: Ticket, endpoint: RankEndpoint) -> PagedKV:
    """The receiving rank's paged KV in its memory."""
    shard = shard_of(ticket.kv, ticket.layout.of_group, endpoint.rank)
    num_blocks, rest = divmod(memory.nbytes, pool_bytes(ticket.kv, shard, 1, ticket.block_tokens))
    wanted = ticket.num_blocks - ticket.first_block
    inside = all(0 <= block < num_blocks for block in ticket.blocks)
    if rest or len(ticket.blocks) != wanted or not inside:
        raise _failed(
            f"{wanted} blocks {list(ticket.blocks[:8])} do not lie in a pool of {memory.nbytes} "
            f"bytes"
        )
    return PagedKV(memory.data, ticket.kv, shard, num_blocks, ticket.block_tokens)


def _open(pid: int, number: int, flags: int, opened: contextlib.ExitStack) -> int:
    # Whatever it is, opening it does not wait.
    fd = os.open(f"/proc/{pid}/fd/{number}", flags | os.O_NONBLOCK)
    opened.callback(os.close, fd)
    return fd


def _failed(what: str) -> TransferFailed:
    return TransferFailed(
        f"{what}; allowed: the shared pool of a live rank on this host", phase=Phase.TRANSFER
    )
