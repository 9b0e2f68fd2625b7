"""The prompt of a request of a trace: equal leading blocks of the trace are equal leading tokens.

A prompt is named by its blocks, and its tokens are made when somebody looks at them: a trace has
more of them than fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from planner.traces import TraceRow

# Tokens that a block of a trace stands for.
HASHED_TOKENS = 512
_FIRST_BLOCK = 100
_FIRST_OWN = 10_000_000


class TracePrompt(Sequence[int]):
    """Tokens ``[start, stop)`` of a prompt, in the place of a tuple.

    names: a token for each block of the trace, which is that token over and over. own: the token
    behind them all, which no other request has.
    """

    __slots__ = ("_first", "_names", "_own", "_start", "_stop")

    def __init__(self, names: Sequence[int], own: int, start: int, stop: int) -> None:
        self._names = names
        self._own = own
        self._start = start
        self._stop = stop
        block = start // HASHED_TOKENS
        self._first = names[block] if block < len(names) else own

    @classmethod
    def of(cls, number: int, row: TraceRow) -> TracePrompt:
        """The prompt of the request of this number."""
        names = [_FIRST_BLOCK + block for block in row.blocks]
        return cls(names, _FIRST_OWN + number, 0, row.isl)

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> TracePrompt: ...
    def __getitem__(self, at: int | slice) -> int | TracePrompt:
        if at == 0 and self._start < self._stop:  # what is looked at for each token of an answer
            return self._first
        if isinstance(at, slice):
            part = range(self._start, self._stop)[at]
            assert part.step == 1
            return TracePrompt(self._names, self._own, part.start, max(part.start, part.stop))
        block = range(self._start, self._stop)[at] // HASHED_TOKENS
        return self._names[block] if block < len(self._names) else self._own

    def __iter__(self) -> Iterator[int]:
        return iter(self.__array__().tolist())

    def __add__(self, more: tuple[int, ...]) -> tuple[int, ...]:
        return (*self, *more)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """For numpy."""
        first, last = self._start // HASHED_TOKENS, -(-self._stop // HASHED_TOKENS)
        names = self._names[first:last]
        names = [*names, *[self._own] * (last - first - len(names))]
        tokens = np.repeat(np.asarray(names, dtype=dtype or np.int64), HASHED_TOKENS)
        skipped = first * HASHED_TOKENS
        return tokens[self._start - skipped : self._stop - skipped]
