"""A receiver whose senders may write by themselves: closing a transfer waits for them.

A sender that outlives its lease knows nothing of the end of its transfer. The fence keeps it from
beginning another write; one that is being made is waited for, before anybody reuses the blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from eastwest.errors import ErrorCode
from eastwest.messages import Transport
from kv_transfer.plan import Region
from kv_transfer.ranks import Fence, Opening
from kv_transfer.receiver import Receiver


class Closing:
    """Awaitable: there once `done` is set."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self.done.wait().__await__()


class FencedReceiver:
    """`receiver` behind `fence`. Is a `ReceivingRank`; `tick` is called now and then.

    The frames themselves go to `receiver`.
    """

    def __init__(self, receiver: Receiver, fence: Fence) -> None:
        self._receiver = receiver
        self._fence = fence
        # Transfers that senders write to by themselves; None while they are open.
        self._closing: dict[str, Closing | None] = {}

    def open(self, opening: Opening) -> None:
        """See `ReceivingRank.open`."""
        if opening.transport is not Transport.GRPC:
            self._fence.open(opening.transfer_id)
            self._closing[opening.transfer_id] = None
        self._receiver.open(opening)

    def close(self, transfer_id: str, reason: ErrorCode | None) -> Closing:
        """See `ReceivingRank.close`."""
        self._receiver.close(transfer_id, reason)
        closing = self._closing.get(transfer_id)
        if closing is None:
            closing = Closing()
            if transfer_id not in self._closing or self._fence.close(transfer_id):
                closing.done.set()
                self._closing.pop(transfer_id, None)
            else:
                self._closing[transfer_id] = closing
        return closing

    async def missing(self, transfer_id: str) -> list[Region]:
        """See `ReceivingRank.missing`."""
        return await self._receiver.missing(transfer_id)

    def tick(self) -> None:
        """Ask the fence again for the transfers that are being closed."""
        for transfer_id, closing in list(self._closing.items()):
            if closing is not None and self._fence.close(transfer_id):
                del self._closing[transfer_id]
                closing.done.set()
