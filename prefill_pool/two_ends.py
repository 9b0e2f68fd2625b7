"""A part of a prompt that is computed from its front while stored KV is loaded from its back.

    start ───▶ done ───▶ claimed          floor ◀─── ceiling ◀─── high ───── stop
      │ computed │ computing │     open      │ reading  │ writing  │  loaded   │

Computing the front needs nothing of what is behind, so both go on at once until they meet; after
that the prompt goes on behind `stop`. Each token is written by one of the two: what is being read
may still be computed, since it goes to a buffer first; what is being written may not.

Where to meet is said beforehand, for a chunk cannot be cut short once it runs. Where the loads are
late there, what is left is divided as the part so far was. Positions are tokens, on the borders of
blocks but for `done` and `claimed`.
"""

from __future__ import annotations


class TwoEnds:
    """Of one prompt. high: loaded from here on. claimed: a chunk may be computing up to here."""

    def __init__(self, start: int, stop: int, meet: int, block_tokens: int) -> None:
        self.start = self.claimed = start
        self.stop = self.high = stop
        self._ceiling = stop
        self._size = block_tokens
        self._meet = start
        self._meet_at(meet)
        self.loading = start < stop

    # Its front.

    def reach(self, done: int) -> int:
        """How far may be computed, with everything before `done` computed; `done`: not now."""
        if self.loading and self._meet <= done < self._ceiling:
            computed, loaded = done - self.start, self.stop - self.high
            open_tokens = self._ceiling - done
            share = computed / (computed + loaded) if computed else 0.0
            self._meet_at(done + int(open_tokens * share))
        limit = min(self._meet, self._ceiling) if self.loading else self._ceiling
        return max(done, limit)

    def expected(self, done: int) -> int:
        """Tokens behind `done` that are likely to be computed."""
        return max(0, (min(self._meet, self.high) if self.loading else self.high) - done)

    def met(self, done: int) -> bool:
        """Whether the KV of all tokens before `stop` is there."""
        return done == self.high == self._ceiling

    # Its back.

    def next_span(self, tokens: int) -> range:
        """What is to be read next, at most so much; empty where nothing is."""
        claimed = -(-self.claimed // self._size) * self._size
        floor = max(claimed, self._meet) if self._meet < self.high else claimed
        return range(max(floor, self.high - tokens), self.high)

    def write(self, span: range) -> range:
        """A span is read: the part of it that may be written. Nobody computes there from here on,
        until `written`."""
        claimed = -(-self.claimed // self._size) * self._size
        self._ceiling = min(max(span.start, claimed), self.high)
        return range(self._ceiling, self.high)

    def written(self) -> None:
        """What `write` gave is there."""
        self.high = self._ceiling

    def end(self) -> None:
        """Nothing more is loaded."""
        self._ceiling = self.high
        self.loading = False

    def _meet_at(self, tokens: int) -> None:
        self._meet = max(self.start, min(tokens // self._size * self._size, self.stop))
