"""Runs the steps of one replica on behalf of its sources: prefill, decode or both.

A source plans rows and is told their results; the loop joins the rows of all sources into one
batch. Blocks that a running step may write to must not be given away: whoever wants to release
them does so through `after_step`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
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

    def plan(self, beside: int) -> list[StepRow]:
        """Rows for the next step, which has `beside` of other sources already; empty for none."""

    def apply(self, result: StepResult) -> None:
        """The rows of the last plan have run."""

    def failed(self, error: Exception) -> None:
        """The step with the rows of the last plan did not complete."""


class Steps(Protocol):
    """What runs a batch: all ranks of a replica."""

    async def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        """See `Engine.step`. A cancelled caller still waits for the end of the step."""


class Stepping(ABC):
    """One step at a time: `begin` and then `end` or `fail`, called by whoever runs the steps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sources: list[StepSource] = []
        self._shares: list[tuple[StepSource, int]] = []  # of the step that runs: whose rows it has
        self._started_ns = 0
        self._afterwards: list[Callable[[], None]] = []

    def add(self, source: StepSource) -> None:
        """Sources are asked in the order of their adding: earlier ones come first in a batch."""
        self._sources.append(source)

    @abstractmethod
    def wake(self) -> None:
        """A source has work."""

    def after_step(self, action: Callable[[], None]) -> None:
        """Run `action` as soon as no step is running: at once, or at the end of this one."""
        if self._shares:
            self._afterwards.append(action)
        else:
            action()

    def begin(self) -> list[StepRow]:
        """The rows of the next step, which runs from here on; empty where there is no work."""
        batch: list[StepRow] = []
        shares = self._shares
        for source in self._sources:
            if rows := source.plan(len(batch)):
                batch += rows
                shares.append((source, len(rows)))
        self._started_ns = self._clock.now_ns()
        return batch

    def end(self, tokens: Sequence[SampledToken | None]) -> None:
        """What the rows gave."""
        ended_ns, first = self._clock.now_ns(), 0
        try:
            for source, count in self._shares:
                share = tokens[first : first + count]
                source.apply(StepResult(share, self._started_ns, ended_ns))
                first += count
        finally:
            self.over()

    def fail(self, error: Exception) -> None:
        """The step did not complete."""
        log.error("an engine step failed", exc_info=error)
        try:
            for source, _ in self._shares:
                source.failed(error)
        finally:
            self.over()

    def over(self) -> None:
        """No step is running, and what waited for that is done."""
        self._shares = []
        if self._afterwards:
            actions, self._afterwards = self._afterwards, []
            for action in actions:
                action()


class StepLoop(Stepping):
    """Runs the steps on what computes them."""

    def __init__(self, steps: Steps, clock: Clock) -> None:
        super().__init__(clock)
        self._steps = steps
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Step while there is work; ends by being cancelled."""
        while True:
            self._wake.clear()
            batch = self.begin()
            if not batch:
                await self._wake.wait()
                continue
            try:
                tokens = await self._steps.step(batch)
            except Exception as error:  # noqa: BLE001 - the sources are told
                self.fail(error)
            except BaseException:
                self.over()
                raise
            else:
                self.end(tokens)
