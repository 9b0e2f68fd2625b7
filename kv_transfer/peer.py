"""A sender's connections to the KvTransfer service of one receiving rank: frames, and commits."""

from __future__ import annotations

import asyncio

from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer.commit_line import CommitLine
from kv_transfer.push_client import PushClient, PushStream


class Peer:
    """One address. `slots` bounds the frames on the way to it, over all transfers; idle_s: see
    `PushClient`.

    Made on the event loop that uses it; `close` ends every call.
    """

    def __init__(self, address: str, *, message_bytes: int, slots: int, idle_s: float) -> None:
        self.slots = asyncio.Semaphore(slots)
        self._frames = PushClient(address, idle_s=idle_s)
        self._commits = CommitLine(address, message_bytes=message_bytes)

    def push(self, timeout_s: float) -> PushStream:
        """A new stream of frames."""
        return self._frames.push(timeout_s)

    async def commit(self, request: wire.CommitRequest, timeout_s: float) -> wire.CommitReceipt:
        """See `CommitLine.commit`."""
        return await self._commits.commit(request, timeout_s)

    async def abort(self, request: wire.AbortTransferRequest, timeout_s: float) -> None:
        """The transfer is given up."""
        await self._commits.abort(request, timeout_s)

    async def close(self) -> None:
        """Idempotent."""
        await self._frames.close()
        await self._commits.close()
