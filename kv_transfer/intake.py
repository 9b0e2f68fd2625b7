"""The frames of one Push call, on their way to a `Receiver`, whichever server took the call."""

from __future__ import annotations

from eastwest.clock import Clock
from eastwest.errors import CorruptData, LeaseExpired
from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer import frame_codec
from kv_transfer.frame_codec import Frame
from kv_transfer.landing import Landing
from kv_transfer.receiver import FrameResult, Receiver

# A connection that damages so many frames of one stream is not worth repeating them on.
CORRUPT_FRAMES_MAX = 64


class FrameIntake:
    """Counts frames in `receipt`; a damaged one is only counted, up to a bound."""

    def __init__(self, receiver: Receiver, clock: Clock) -> None:
        self.receipt = wire.PushReceipt()
        self._receiver = receiver
        self._clock = clock
        self._transfer_id = ""
        self._frames = 0
        self._frames_before = 0

    def take(self, message: bytes | memoryview) -> None:
        """One frame, of which nothing is kept. Raises what ends the call."""
        try:
            frame = frame_codec.decode(message)
        except CorruptData:
            self._count(None, 0, FrameResult.CORRUPT)
        else:
            result = self._receiver.accept(frame, self._clock.now_ns())
            self._count(frame, frame.payload.nbytes, result)

    def place(self, head: memoryview, size: int) -> Landing | None:
        """Where to put the rest of a frame of `size` bytes that begins with `head`; None to
        `take` it whole."""
        try:
            frame, start = frame_codec.decode_head(head, size)
        except CorruptData:
            return None
        landing = self._receiver.land(frame, size - start)
        rest = head[start:]
        while landing is not None and len(rest):
            room = landing.room()[: len(rest)]
            room[:] = rest[: len(room)]
            landing.filled(len(room))
            rest = rest[len(room) :]
        return landing

    def placed(self, landing: Landing) -> None:
        """All of it has come. Raises what ends the call."""
        result = self._receiver.landed(landing, self._clock.now_ns())
        self._count(landing.frame, landing.size, result)

    def _count(self, frame: Frame | None, size: int, result: FrameResult) -> None:
        self._frames += 1
        match result:
            case FrameResult.ACCEPTED:
                assert frame is not None
                self._transfer_id = frame.header.transfer_id
                self.receipt.accepted_frames += 1
                self.receipt.accepted_bytes += size
            case FrameResult.DUPLICATE:
                self.receipt.duplicate_frames += 1
            case FrameResult.CORRUPT:
                self.receipt.corrupt_frames += 1
        if self.receipt.corrupt_frames > CORRUPT_FRAMES_MAX:
            raise CorruptData(f"more than {CORRUPT_FRAMES_MAX} frames of one stream were damaged")

    def check_alive(self, idle_s: float) -> None:
        """Raises `LeaseExpired` where nothing came since the last call of this, `idle_s` ago, for
        a transfer that is not open."""
        if self._frames == self._frames_before and not self._receiver.is_open(self._transfer_id):
            raise LeaseExpired(f"a push stream was silent for {idle_s} s")
        self._frames_before = self._frames
