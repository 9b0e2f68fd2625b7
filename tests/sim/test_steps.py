"""Simulated steps are timers; a worker's own loop awaits an engine. Both do the same at the same
times, in the same order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest

from decode_pool.scheduler import DecodeScheduler, Running
from eastwest.ports import StepRow
from eastwest.stopping import StopRule
from eastwest.types import SampledToken, SamplingParams
from runtime.step_loop import StepLoop, Stepping, StepResult
from sim.engine import SimulatedSteps, mark_of, token_at
from sim.virtual_loop import VirtualClock, VirtualLoop

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


def seconds_of(rows: Sequence[StepRow]) -> float:
    return 0.01 + 0.001 * len(rows) + 1e-6 * sum(row.start for row in rows)


class AwaitedSteps:
    """Is `Steps`: an engine that takes its time, as one behind a thread does."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    async def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        """See `Engine.step`."""
        await self._loop.after(seconds_of(rows))
        return [
            SampledToken(token_at(mark_of(s.prompt), len(s.output))) if s else None
            for s in [row.sample for row in rows]
        ]


class Source:
    """Decodes what it is given, and writes down what happens."""

    def __init__(self, steps: Stepping, loop: VirtualLoop, log: list[str]) -> None:
        self._scheduler = DecodeScheduler(running_max=3)
        self._steps, self._loop, self._log = steps, loop, log
        self._planned: list[Running] = []

    def enter(self, name: str, prompt: tuple[int, ...], max_tokens: int) -> None:
        rule = StopRule.of(GREEDY, (), max_tokens)
        self._scheduler.add(Running(name, prompt, [5], (0,), GREEDY, rule))
        self._steps.wake()

    def leave(self, name: str) -> None:
        self._note(f"{name} is to leave")
        self._scheduler.remove(name)
        self._steps.after_step(lambda: self._note(f"{name} has left"))

    def plan(self, beside: int) -> list[StepRow]:
        self._planned = self._scheduler.plan()
        self._note(f"plans {[s.request_id for s in self._planned]}")
        return [sequence.row() for sequence in self._planned]

    def apply(self, result: StepResult) -> None:
        took = result.ended_ns - result.started_ns
        for sequence, token in zip(self._planned, result.tokens, strict=True):
            assert token is not None
            self._note(f"{sequence.request_id} gets {token.token} after {took}")
            if sequence.advance(token.token) is not None:
                self._scheduler.remove(sequence.request_id)

    def failed(self, error: Exception) -> None:
        raise AssertionError("no step fails here") from error

    def _note(self, what: str) -> None:
        self._log.append(f"{self._loop.now_ns} {what}")


def run(make: Callable[[VirtualLoop], Stepping], seed: int) -> list[str]:
    """Requests come to two sources at random, also while nothing runs, and some leave."""
    loop = VirtualLoop()
    log: list[str] = []

    async def work() -> None:
        rng = random.Random(seed)
        steps = make(loop)
        sources = [Source(steps, loop, log) for _ in range(2)]
        for source in sources:
            steps.add(source)
        runs = asyncio.create_task(steps.run()) if isinstance(steps, StepLoop) else None
        if isinstance(steps, SimulatedSteps):
            steps.start()
        for number in range(40):
            await loop.after(rng.choice((0.003, 0.05, 0.4)) * rng.random())
            source = rng.choice(sources)
            source.enter(f"r{number}", (number, 2, 3), rng.choice((2, 5, 30)))
            if rng.random() < 0.3:
                source.leave(f"r{rng.randrange(number + 1)}")
        await loop.after(5.0)
        if runs is not None:
            runs.cancel()
        if isinstance(steps, SimulatedSteps):
            steps.stop()

    loop.run(work())
    return log


@pytest.mark.parametrize("seed", range(20))
def test_timers_and_a_loop_that_awaits_give_the_same_steps(seed: int) -> None:
    awaited = run(lambda loop: StepLoop(AwaitedSteps(loop), VirtualClock(loop)), seed)
    timed = run(lambda loop: SimulatedSteps(seconds_of, VirtualClock(loop)), seed)
    assert timed == awaited
    assert sum("gets" in line for line in timed) > 100
    assert any("has left" in line for line in timed)
