"""A bad network between a KV sender and its receiver: taps that change the frames of a stream.

Each is a `kv_transfer.sender.FrameTap`: it takes the encoded frames of one stream and gives what
goes on the wire instead. The chosen frames are counted over all streams of the tap, so that a
frame that is sent again gets through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container


class CorruptFrames:
    """Flips one bit of the chosen frames, at byte `offset` (negative: from the end)."""

    def __init__(self, chosen: Container[int] = (0,), *, offset: int = -1) -> None:
        self.hits = 0
        self._chosen = chosen
        self._offset = offset
        self._seen = 0

    async def __call__(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            yield self._damaged(frame) if self._is_chosen() else frame

    def _is_chosen(self) -> bool:
        self._seen += 1
        chosen = self._seen - 1 in self._chosen
        self.hits += chosen
        return chosen

    def _damaged(self, frame: bytes) -> bytes:
        data = bytearray(frame)
        data[self._offset] ^= 0x10
        return bytes(data)


class DropFrames:
    """Loses the chosen frames."""

    def __init__(self, chosen: Container[int] = (0,)) -> None:
        self.hits = 0
        self._chosen = chosen
        self._seen = 0

    async def __call__(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            self._seen += 1
            if self._seen - 1 in self._chosen:
                self.hits += 1
            else:
                yield frame


async def duplicate_frames(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Sends every frame twice."""
    async for frame in frames:
        yield frame
        yield frame


async def reverse_frames(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Sends a stream's frames in reverse order, once all of them are there."""
    for frame in reversed([frame async for frame in frames]):
        yield frame


class ReplaceFrames:
    """Sends what `forge` makes of each frame."""

    def __init__(self, forge: Callable[[bytes], bytes]) -> None:
        self._forge = forge

    async def __call__(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            yield self._forge(frame)


class HoldFrames:
    """Lets `passed` frames through, then holds the others back until `gate` is set.

    held: set once a frame is being held back.
    """

    def __init__(self, passed: int = 0) -> None:
        self.gate = asyncio.Event()
        self.held = asyncio.Event()
        self._passed = passed
        self._seen = 0

    async def __call__(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            self._seen += 1
            if self._seen > self._passed:
                self.held.set()
                await self.gate.wait()
            yield frame
