"""The paged KV of one rank as a target of NIXL, and the receiving half of the fence around it.

Nobody can stop another host from writing what it has begun, so this fence is weaker than that of
`kv_transfer.fence`; ADR 7 says how weak. A sender tells the receiver that it begins, then reads the
receiver's table of open transfers before each piece and after it, and tells when it has ended. The
receiver clears the row of a closed transfer and holds its blocks until each sender that began has
ended; without a word from any, for `QUARANTINE_S`, twice as long as what a sender read is valid.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from eastwest.clock import Clock, ns
from eastwest.errors import Overloaded
from eastwest.ports import Buffer
from kv_transfer.nixl_agent import Agent

TRANSFERS_MAX = 4096
PERMISSION_S = 0.25
QUARANTINE_S = 0.5
ROW_BYTES = 32
TABLE_BYTES = TRANSFERS_MAX * ROW_BYTES
BEGIN, END = b"begin ", b"end "

Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True)
class _Row:
    number: int
    writing: set[str] = field(default_factory=set)
    ended: bool = False  # some sender has, and none is writing
    closed_ns: int | None = None


class NixlPool:
    """Makes `buffer`, the paged KV of one rank, a target of NIXL. Is a `Target`, and its `Fence`.

    silence_s: a sender that began is given up so long after its transfer was closed. Used on one
    thread. Raises `TransferFailed` where there is no NIXL, or it cannot use the memory.
    """

    def __init__(self, buffer: Buffer, clock: Clock, *, silence_s: float) -> None:
        self._agent = Agent()
        self._clock = clock
        self._silence_ns = ns(silence_s)
        self._memory = np.frombuffer(buffer, np.uint8)
        self._table: Bytes = np.zeros((TRANSFERS_MAX, ROW_BYTES), np.uint8)
        self._free = list(range(TRANSFERS_MAX - 1, -1, -1))
        self._rows: dict[str, _Row] = {}
        memory, table = self._agent.register(self._memory), self._agent.register(self._table)
        metadata = base64.b64encode(self._agent.metadata()).decode()
        self.descriptor = f"nixl1:{memory}:{self._memory.nbytes}:{table}:{metadata}"

    @property
    def fence(self) -> NixlPool:
        """See `Target.fence`."""
        return self

    def open(self, transfer_id: str) -> None:
        """See `Fence.open`. `Overloaded` where too many are open or still being closed."""
        assert transfer_id not in self._rows, f"transfer {transfer_id} is open already"
        if not self._free:
            raise Overloaded(
                f"{TRANSFERS_MAX} transfers by NIXL are open; allowed: so many at once"
            )
        row = self._rows[transfer_id] = _Row(self._free.pop())
        self._table[row.number] = np.frombuffer(row_name(transfer_id), np.uint8)

    def close(self, transfer_id: str) -> bool:
        """See `Fence.close`. True for a transfer that is not open."""
        row = self._rows.get(transfer_id)
        if row is None:
            return True
        now_ns = self._clock.now_ns()
        if row.closed_ns is None:
            row.closed_ns = now_ns
            self._table[row.number] = 0
        # Who read the row before that had begun before.
        self._listen()
        patience_ns = self._silence_ns if row.writing else 0 if row.ended else ns(QUARANTINE_S)
        if now_ns < row.closed_ns + patience_ns:
            return False
        del self._rows[transfer_id]
        self._free.append(row.number)
        return True

    def shut(self) -> None:
        """See `Target.shut`."""
        self._table[...] = 0
        self._agent.close()

    def _listen(self) -> None:
        for sender, note in self._agent.notes():
            for kind in (BEGIN, END):
                row = self._rows.get(note.removeprefix(kind).decode("utf-8", "replace"))
                if row is None or not note.startswith(kind):
                    continue
                if kind is BEGIN:
                    row.writing.add(sender)
                else:
                    row.writing.discard(sender)
                row.ended = not row.writing


def row_name(transfer_id: str) -> bytes:
    """What the table's row of an open transfer holds; a free one holds zeros."""
    return blake3(transfer_id.encode()).digest(length=ROW_BYTES)
