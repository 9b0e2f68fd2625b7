"""A frame's payload on its way from the socket straight into the blocks that were reserved for it.

Nothing of it counts before all of it has come and its check holds: until then the blocks are as
good as empty, and what a damaged frame leaves in them is written again. A landing is *revoked* when
its blocks are no longer its own, and drops the rest; it is asked before each piece.
"""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64

from kv_transfer.frame_codec import Frame, checksum_seed

_DROP_BYTES = 1 << 16


class Landing:
    """Of `frame`, whose payload is empty as yet, into `targets`, flat, in order."""

    def __init__(self, frame: Frame, targets: Sequence[memoryview]) -> None:
        self.frame = frame
        self.revoked = False
        self.size = self.left = sum(len(target) for target in targets)
        self._targets = list(reversed(targets))
        self._check = xxh3_64(seed=checksum_seed(frame.header))

    def revoke(self) -> None:
        """Write nothing more."""
        self.revoked = True
        self._targets = [memoryview(bytearray(min(self.left, _DROP_BYTES)))]

    def room(self) -> memoryview:
        """Where the next bytes go; empty once all have come."""
        return self._targets[-1][: self.left]

    def filled(self, count: int) -> None:
        """So many of `room` are there."""
        self.left -= count
        if self.revoked:
            return
        target = self._targets.pop()
        # Now, while it is in the cache.
        self._check.update(target[:count])
        rest = target[count:]
        if len(rest) or not self._targets:
            self._targets.append(rest)

    def intact(self) -> bool:
        """Whether all has come, as it was sent."""
        return not self.revoked and self._check.intdigest() == self.frame.checksum
