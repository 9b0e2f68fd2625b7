"""Runs the steps of one replica on behalf of its sources: prefill, decode or both.

A source plans rows and is told their results; the loop joins the rows of all sources into one
batch. Blocks that a running step may write to must not be given away: whoever wants to release
them does so through `after_step`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from eastwest.clock import Clock
from eastwest.ports import StepRow
from eastwest.types import SampledToken
from eastwest.value import value

log = logging.getLogger(__name__)


@value
class StepResult:
    """What a source's rows gave, in their order, and when the step ran."""

    tokens: Sequence[SampledToken | None]
    started_ns: int
    ended_ns: int


class StepSource(Protocol):
    """Called on the event loop, alternately: one `plan`, then one `apply` or `failed`."""

    def plan(self) -> list[StepRow]:
        """Rows for the next step; empty for none."""

    def apply(self, result: StepResult) -> None:
        """The rows of the last plan have run."""

    def failed(self, error: Exception) -> None:
        """The step with the rows of the last plan did not complete."""


class Steps(Protocol):
    """What runs a batch: all ranks of a replica."""

    async def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        """See `Engine.step`. A cancelled caller still waits for the end of the step."""


class StepLoop:
    """One step at a time."""

    def __init__(self, steps: Steps, clock: Clock) -> None:
        self._steps = steps
        self._clock = clock
        self._sources: list[StepSource] = []
        self._wake = asyncio.Event()
        self._stepping = False
        self._afterwards: list[Callable[[], None]] = []

    def add(self, source: StepSource) -> None:
        """Sources are asked in the order of their adding: earlier ones come first in a batch."""
        self._sources.append(source)

    def wake(self) -> None:
        """A source has work."""
        self._wake.set()

    def after_step(self, action: Callable[[], None]) -> None:
        """Run `action` as soon as no step is running: at once, or at the end of this one."""
        if self._stepping:
            self._afterwards.append(action)
        else:
            action()

    async def run(self) -> None:
        """Step while there is work; ends by being cancelled."""
        while True:
            self._wake.clear()
            batch, shares = self._plan()
            if not batch:
                await self._wake.wait()
                continue
            started = self._clock.now_ns()
            self._stepping = True
            try:
                tokens = await self._steps.step(batch)
            except Exception as error:
                log.exception("an engine step of %d rows failed", len(batch))
                for source, _ in shares:
                    source.failed(error)
            else:
                self._apply(tokens, shares, started)
            finally:
                self._stepping = False
                if self._afterwards:
                    self._act()

    def _plan(self) -> tuple[list[StepRow], list[tuple[StepSource, int]]]:
        """A batch, and of whom it is: of each source so many rows."""
        batch: list[StepRow] = []
        shares = []
        for source in self._sources:
            if rows := source.plan():
                batch += rows
                shares.append((source, len(rows)))
        return batch, shares

    def _apply(
        self,
        tokens: list[SampledToken | None],
        shares: list[tuple[StepSource, int]],
        started_ns: int,
    ) -> None:
        ended_ns, first = self._clock.now_ns(), 0
        for source, count in shares:
            source.apply(StepResult(tokens[first : first + count], started_ns, ended_ns))
            first += count

    def _act(self) -> None:
        actions, self._afterwards = self._afterwards, []
        for action in actions:
            action()
