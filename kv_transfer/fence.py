"""Keeps senders that write by themselves out of blocks that are no longer theirs.

A table in shared memory has a row for each open transfer, and each row a lock, which the kernel
keeps and drops with the process that holds it. A sender takes the lock of its row (shared), looks
whether the row still names its transfer, writes one bounded piece, and lets go. The receiver, to
close a transfer, clears the row and then tries the lock (exclusive) without waiting. Where it gets
it, nobody is writing, and nobody will: whoever comes later finds the row cleared. Where it does
not, somebody may be in the middle of a piece, however long ago that began, and the row stays
taken until that ends or its process does.

Locks are of open file descriptions, so that each `Gate` has locks of its own, also within one
process, and closing one file drops no lock of another.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from eastwest.errors import LeaseExpired, Overloaded, Phase, TransferFailed

TRANSFERS_MAX = 4096
_MAGIC = b"eastwest fence 1"
NONCE_BYTES = 16
_HEAD_BYTES = 64  # magic, nonce, inode and size of the memory, zeros
_MEMORY = struct.Struct("<QQ")
_ROW_BYTES = 32
TABLE_BYTES = _HEAD_BYTES + TRANSFERS_MAX * _ROW_BYTES
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# ``struct flock`` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi4x")
_FREE = bytes(_ROW_BYTES)

Rows = npt.NDArray[np.uint8]


class TableFence:
    """The receiver's side, around the memory in file `memory_fd`. Is a `kv_transfer.ranks.Fence`.

    nonce: what senders know this incarnation by. fd: the table, for others to open while this
    process lives. Used on one thread.
    """

    def __init__(self, memory_fd: int) -> None:
        self.nonce = os.urandom(NONCE_BYTES)
        self.fd = os.memfd_create("eastwest-fence", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, TABLE_BYTES)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        self._table = mmap.mmap(self.fd, TABLE_BYTES)
        head = _MAGIC + self.nonce + _identity(memory_fd)
        self._table[: len(head)] = head
        self._free = list(range(TRANSFERS_MAX - 1, -1, -1))
        self._rows: dict[str, int] = {}

    def open(self, transfer_id: str) -> None:
        """See `Fence.open`. `Overloaded` where too many are open or still being closed."""
        assert transfer_id not in self._rows, f"transfer {transfer_id} is open already"
        if not self._free:
            raise Overloaded(
                f"{TRANSFERS_MAX} transfers into shared memory are open; allowed: so many at once"
            )
        row = self._rows[transfer_id] = self._free.pop()
        self._write(row, _name(transfer_id))

    def close(self, transfer_id: str) -> bool:
        """See `Fence.close`. True for a transfer that is not open."""
        row = self._rows.get(transfer_id)
        if row is None:
            return True
        self._write(row, _FREE)
        if not _lock(self.fd, fcntl.F_WRLCK, row):
            return False
        _lock(self.fd, fcntl.F_UNLCK, row)
        del self._rows[transfer_id]
        self._free.append(row)
        return True

    def shut(self) -> None:
        """Close every transfer and the file. Nobody can open it any more."""
        for row in self._rows.values():
            self._write(row, _FREE)
        os.close(self.fd)
        self._table.close()

    def _write(self, row: int, name: bytes) -> None:
        start = _HEAD_BYTES + row * _ROW_BYTES
        self._table[start : start + _ROW_BYTES] = name


class FenceTable:
    """A sender's view of a receiver's table. Owns `fd`, which is open for reading."""

    def __init__(self, fd: int) -> None:
        """Raises `TransferFailed` where it is no such table."""
        self._fd = fd
        if os.fstat(fd).st_size != TABLE_BYTES or not sealed(fd):
            raise TransferFailed("the fence is not a sealed table", phase=Phase.TRANSFER)
        table = np.frombuffer(mmap.mmap(fd, TABLE_BYTES, prot=mmap.PROT_READ), np.uint8)
        self._head = table[:_HEAD_BYTES].tobytes()
        self._rows: Rows = table[_HEAD_BYTES:].reshape(-1, _ROW_BYTES)

    def check(self, nonce: bytes, memory_fd: int) -> None:
        """Raises `TransferFailed` unless this is the fence of that incarnation and memory."""
        if not self._head.startswith(_MAGIC + nonce + _identity(memory_fd)):
            raise TransferFailed(
                "the shared memory is not that of the incarnation in the ticket",
                phase=Phase.TRANSFER,
            )

    def gate(self, transfer_id: str) -> Gate:
        """For one transfer, and one task at a time."""
        return Gate(os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY), self._rows, transfer_id)

    def close(self) -> None:
        """No more gates; those that are there stay."""
        os.close(self._fd)


class Gate:
    """The way into the receiver's memory for one transfer. Owns `fd`."""

    def __init__(self, fd: int, rows: Rows, transfer_id: str) -> None:
        self._fd = fd
        self._transfer_id = transfer_id
        self._name = _name(transfer_id)
        found = np.flatnonzero((rows == np.frombuffer(self._name, np.uint8)).all(axis=1))
        # One that is closed already has no row; row 0 does not name it either.
        self._row = int(found[0]) if len(found) else 0
        self._held = rows[self._row]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the blocks of the transfer for one piece. Never waits.

        `LeaseExpired` where they are not this transfer's any more, at the beginning or, with what
        was written lost, at the end."""
        # Refused only while the receiver closes this row.
        if not _lock(self._fd, fcntl.F_RDLCK, self._row):
            raise self._expired()
        try:
            self._check()
            yield
            self._check()
        finally:
            _lock(self._fd, fcntl.F_UNLCK, self._row)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check(self) -> None:
        if self._held.tobytes() != self._name:
            raise self._expired()

    def _expired(self) -> LeaseExpired:
        return LeaseExpired(
            f"transfer {self._transfer_id!r} is not open any more", phase=Phase.TRANSFER
        )


def sealed(fd: int) -> bool:
    """Whether a file can never change its size, so that mapping it is safe."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        return False  # not a file that can be sealed


def _identity(memory_fd: int) -> bytes:
    found = os.fstat(memory_fd)
    return _MEMORY.pack(found.st_ino, found.st_size)


def _name(transfer_id: str) -> bytes:
    return blake3(transfer_id.encode()).digest(length=_ROW_BYTES)


def _lock(fd: int, kind: int, row: int) -> bool:
    """Take or drop the lock of a row, without waiting; false where another file holds it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, row, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
