"""A receiver whose senders may write by themselves: closing a transfer waits for them.

A sender that outlives its lease knows nothing of the end of its transfer. The fence of its
transport keeps it from beginning another write; one that is being made is waited for, before
anybody uses the blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from eastwest.errors import ErrorCode, InvalidArgument
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


@dataclass(slots=True)
class _Fenced:
    """A transfer that senders write to by themselves. `closing`: None while it is open."""

    fence: Fence
    closing: Closing | None = None


class FencedReceiver:
    """`receiver` behind the fence of each transport that writes by itself. Is a `ReceivingRank`.

    The frames themselves go to `receiver`. waiting: set while transfers are being closed; `tick`
    is called now and then meanwhile.
    """

    def __init__(self, receiver: Receiver, fences: Mapping[Transport, Fence]) -> None:
        self.waiting = asyncio.Event()
        self._receiver = receiver
        self._fences = fences
        self._fenced: dict[str, _Fenced] = {}

    def open(self, opening: Opening) -> None:
        """See `ReceivingRank.open`."""
        # Where nothing is to come, nobody writes.
        if opening.transport is not Transport.GRPC and opening.first_block < opening.num_blocks:
            fence = self._fences.get(opening.transport)
            if fence is None:
                raise InvalidArgument(
                    f"KV is to come by {opening.transport}; allowed: {', '.join(self._fences)}"
                )
            self._receiver.open(opening)
            fence.open(opening.transfer_id)
            self._fenced[opening.transfer_id] = _Fenced(fence)
        else:
            self._receiver.open(opening)

    def close(self, transfer_id: str, reason: ErrorCode | None) -> Closing:
        """See `ReceivingRank.close`."""
        self._receiver.close(transfer_id, reason)
        fenced = self._fenced.get(transfer_id)
        if fenced is not None and fenced.closing is not None:
            return fenced.closing
        closing = Closing()
        if fenced is None or fenced.fence.close(transfer_id):
            closing.done.set()
            self._fenced.pop(transfer_id, None)
        else:
            fenced.closing = closing
            self.waiting.set()
        return closing

    async def missing(self, transfer_id: str) -> list[Region]:
        """See `ReceivingRank.missing`."""
        return await self._receiver.missing(transfer_id)

    def tick(self) -> None:
        """Ask the fences again for the transfers that are being closed."""
        left = False
        for transfer_id, fenced in list(self._fenced.items()):
            if fenced.closing is None:
                continue
            if fenced.fence.close(transfer_id):
                del self._fenced[transfer_id]
                fenced.closing.done.set()
            else:
                left = True
        if not left:
            self.waiting.clear()
