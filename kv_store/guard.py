"""What stands around every store operation: the circuit, the deadline, and counting.

A server that is gone costs one operation its deadline; after that, operations fail at once until
the circuit lets one through to see whether it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.exceptions import RedisError

from eastwest.clock import Clock
from eastwest.errors import EastWestError, StoreUnavailable
from kv_store.circuit import Admission, Circuit, CircuitState
from kv_store.resp import Reply, ReplyError


@dataclass(slots=True)
class StoreCounters:
    """What a store has done so far, in blocks (or sessions), bytes and events.

    evicted: blocks that had to leave for others. corrupt: values that failed a check and were
    removed. errors: operations that the server did not answer in time or refused.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    evicted: int = 0
    corrupt: int = 0
    errors: int = 0


class Guard:
    """One per store object. Wrap each operation in `operation()`."""

    def __init__(
        self, circuit: Circuit, clock: Clock, timeout_s: float, counters: StoreCounters
    ) -> None:
        self._circuit = circuit
        self._clock = clock
        self._timeout_s = timeout_s
        self._counters = counters

    @property
    def available(self) -> bool:
        """Whether the store answered when it was last asked."""
        return self._circuit.state is CircuitState.CLOSED

    @asynccontextmanager
    async def operation(self) -> AsyncIterator[None]:
        """Raises `StoreUnavailable` when the circuit is open, the deadline passes, or the
        connection cannot be made or breaks. Errors of ours pass through: the server answered.
        """
        admission = self._circuit.admit(self._clock.now_ns())
        if admission is Admission.REFUSED:
            raise StoreUnavailable(
                "the store did not answer lately and is not asked again yet",
                retry_after_s=self._circuit.retry_in_s(self._clock.now_ns()),
            )
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
            self._circuit.succeeded(admission)
        except (OSError, RedisError) as error:
            self._counters.errors += 1
            self._circuit.failed(admission, self._clock.now_ns())
            raise self._unanswered(error) from error
        except EastWestError:
            self._counters.errors += 1
            self._circuit.succeeded(admission)
            raise
        finally:
            self._circuit.abandoned(admission)

    def _unanswered(self, error: Exception) -> StoreUnavailable:
        if isinstance(error, TimeoutError):
            reason = f"no answer within {self._timeout_s} s"
        else:
            reason = f"{type(error).__name__}: {error}"
        retry_in_s = self._circuit.retry_in_s(self._clock.now_ns())
        return StoreUnavailable(f"the store: {reason}", retry_after_s=retry_in_s)


def raise_refusal(replies: list[Reply]) -> None:
    """Raise `StoreUnavailable` for the first reply that is an error, such as out of memory."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise StoreUnavailable(f"the store refused: {reply.text}")
        if isinstance(reply, list):
            raise_refusal(reply)
