"""A bad network between a KV sender and its receiver: taps that change the frames of a stream.

Each is a `kv_transfer.push.FrameTap`: it takes the encoded frames of one stream and gives what
goes on the wire instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Sequence

ALL = range(1 << 62)


class ChangeFrames:
    """Sends what `change` makes of the chosen frames, which may be nothing, or several frames.

    Frames are numbered from 0 over all streams of the tap: one that is sent again has another
    number. hits: how many were changed.
    """

    def __init__(
        self, change: Callable[[bytes], Sequence[bytes]], chosen: Container[int] = ALL
    ) -> None:
        self.hits = 0
        self._change = change
        self._chosen = chosen
        self._seen = 0

    async def __call__(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            number, self._seen = self._seen, self._seen + 1
            if number not in self._chosen:
                yield frame
                continue
            self.hits += 1
            for changed in self._change(frame):
                yield changed


def corrupt_frames(chosen: Container[int], *, offset: int = -1) -> ChangeFrames:
    """Flips one bit at byte `offset` (negative: from the end) of the chosen frames."""

    def change(frame: bytes) -> Sequence[bytes]:
        data = bytearray(frame)
        data[offset] ^= 0x10
        return (bytes(data),)

    return ChangeFrames(change, chosen)


def drop_frames(chosen: Container[int]) -> ChangeFrames:
    """Loses the chosen frames."""
    return ChangeFrames(lambda frame: (), chosen)


def duplicate_frames() -> ChangeFrames:
    """Sends every frame twice."""
    return ChangeFrames(lambda frame: (frame, frame))


async def reverse_frames(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Sends a stream's frames in reverse order, once all of them are there."""
    for frame in reversed([frame async for frame in frames]):
        yield frame


class HoldFrames:
    """Lets `passed` frames through, then holds the others back until `gate` is set.

    held: set once a frame is being held back. seen: frames so far, held ones included.
    """

    def __init__(self, passed: int = 0) -> None:
        self.gate = asyncio.Event()
        self.held = asyncio.Event()
        self._passed = passed
        self.seen = 0

    async def __call__(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            self.seen += 1
            if self.seen > self._passed:
                self.held.set()
                await self.gate.wait()
            yield frame
