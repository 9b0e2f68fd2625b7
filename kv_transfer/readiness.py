"""What of a push may leave next: computed, and not sent yet. Layer by layer, in whole blocks.

Blocks are the receiver's. Its last one counts as whole once the last token is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from eastwest.messages import Ticket
from kv_transfer.plan import Region, Slice, frames


class Readiness:
    """How far each of a rank's `layers` is computed, in tokens from the sequence's first on."""

    def __init__(self, layers: range) -> None:
        self._layers = layers
        self._tokens = [0] * len(layers)

    def __getitem__(self, layer: int) -> int:
        return self._tokens[layer - self._layers.start]

    def raise_to(self, layers: range, tokens: int) -> None:
        """KV before `tokens` is there in `layers`. What is there stays there."""
        for layer in layers:
            at = layer - self._layers.start
            self._tokens[at] = max(self._tokens[at], tokens)


class Unsent:
    """What one destination rank still has to get of `slices`."""

    def __init__(self, slices: Sequence[Slice], ticket: Ticket, frame_bytes: int) -> None:
        self._slices = slices
        self._ticket = ticket
        self._frame_bytes = frame_bytes
        # For each slice, the block up to which each of its layers has been taken.
        self._taken = [[ticket.first_block] * len(part.layers) for part in slices]

    @property
    def done(self) -> bool:
        return all(t == self._ticket.num_blocks for taken in self._taken for t in taken)

    def take(self, ready: Readiness) -> list[Region]:
        """The frames of one box that is ready, as large as can be; none where nothing is."""
        for part, taken in zip(self._slices, self._taken, strict=True):
            stops = [self._blocks(ready[layer]) for layer in part.layers]
            for first, (start, stop) in enumerate(zip(taken, stops, strict=True)):
                if stop <= start:
                    continue
                last = first + 1
                while last < len(stops) and (taken[last], stops[last]) == (start, stop):
                    last += 1
                taken[first:last] = [stop] * (last - first)
                return self.cut(part.layers[first:last], range(start, stop), part.heads)
        return []

    def cut(self, layers: range, blocks: range, heads: range) -> list[Region]:
        """The frames of a box."""
        ticket = self._ticket
        return list(
            frames(
                layers,
                blocks,
                heads,
                spec=ticket.kv,
                block_tokens=ticket.block_tokens,
                frame_bytes=self._frame_bytes,
            )
        )

    def _blocks(self, tokens: int) -> int:
        """How many leading blocks are there when `tokens` tokens are."""
        ticket = self._ticket
        return ticket.num_blocks if tokens >= ticket.num_tokens else tokens // ticket.block_tokens
