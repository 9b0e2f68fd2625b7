"""The connections of one sender to the addresses it sends to: shared, kept, and bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kv_transfer.peer import Peer
from kv_transfer.push_client import IDLE_S

# Connections that no transfer uses are kept for the next one, up to so many.
PEERS_MAX = 64


class Connections:
    """One `Peer` an address. `message_bytes`, `slots` and `idle_s` are those of each `Peer`."""

    def __init__(self, *, message_bytes: int, slots: int, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._message_bytes = message_bytes
        self._slots = slots
        self._peers: dict[str, Peer] = {}  # the last one used comes last
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._peers)

    def use(self, address: str) -> Peer:
        """The connection to `address`, until `release`."""
        peer = self._peers.pop(address, None)
        if peer is None:
            peer = Peer(
                address,
                message_bytes=self._message_bytes,
                slots=self._slots,
                idle_s=self._idle_s,
            )
        self._peers[address] = peer
        self._users[address] += 1
        return peer

    async def release(self, address: str) -> None:
        """One user of `address` has ended; idle connections beyond the bound are closed."""
        self._users[address] -= 1
        if not self._users[address]:
            del self._users[address]
        surplus = len(self._peers) - PEERS_MAX
        idle = [address for address in self._peers if address not in self._users]
        for address in idle[: max(0, surplus)]:
            await self._peers.pop(address).close()

    @asynccontextmanager
    async def lend(self, address: str) -> AsyncIterator[Peer]:
        """The connection to `address` for one call."""
        peer = self.use(address)
        try:
            yield peer
        finally:
            await self.release(address)

    async def close(self) -> None:
        """Close all. Idempotent."""
        while self._peers:
            _, peer = self._peers.popitem()
            await peer.close()
