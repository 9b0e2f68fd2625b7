"""SIMULATED engine: a step takes the time that the cost model says, and samples checkable tokens.

The token at output position i of a request depends on its prompt and i alone, so that a lost, a
repeated or a foreign token shows, on whatever worker and after whatever migration it was sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from eastwest.clock import Clock
from eastwest.layout import KVSpec
from eastwest.ports import Buffer, StepRow
from eastwest.types import SampledToken
from planner.cost import CostModel, Row
from runtime.step_loop import Stepping
from sim.virtual_loop import Call, running_loop

VOCAB = 1 << 26
_CONTEXT_STEP = 32
# Ids below are kept for ends of texts, which no simulated token is.
_FIRST = 16
_TEXTS = VOCAB - _FIRST
_MARKS_MAX = 1024


def mark_of(prompt: Sequence[int]) -> int:
    """What the output of a request is known by; prompts differ in their first tokens."""
    return prompt[0] * 31 + len(prompt) * 7


def token_at(mark: int, position: int) -> int:
    """The token of the request of this mark at an output position."""
    return _FIRST + (mark + position) % _TEXTS


StepTime = Callable[[Sequence[StepRow]], float]


def cost_of(cost: CostModel) -> StepTime:
    """Seconds of a step by the cost model. Decode rows are put together by their mean context, to
    `_CONTEXT_STEP` tokens."""

    @lru_cache(maxsize=1 << 16)
    def decode(context: int, count: int) -> float:
        return cost.step([Row(1, context, count)]).seconds

    def seconds(rows: Sequence[StepRow]) -> float:
        total = count = 0
        prompts = []
        for row in rows:
            new = len(row.tokens)
            if new == 1:
                total += row.start
                count += 1
            else:
                prompts.append(Row(new, row.start, 1, row.sample is not None))
        context = round(total / count / _CONTEXT_STEP) * _CONTEXT_STEP if count else 0
        if not prompts:
            return decode(context, count)
        return cost.step([*prompts, Row(1, context, count)] if count else prompts).seconds

    return seconds


class SimulatedSteps(Stepping):
    """The steps of a replica of one group, timer by timer. busy_s: time spent in steps so far."""

    def __init__(self, seconds: StepTime, clock: Clock) -> None:
        super().__init__(clock)
        self._seconds = seconds
        self._time = running_loop()
        self._next: Call | None = None
        self._idle = False
        # By the prompt's identity, which is sure as long as the prompt is kept here.
        self._marks: dict[int, tuple[Sequence[int], int]] = {}
        self.busy_s = 0.0
        self.steps = 0

    def wake(self) -> None:
        if self._idle:
            self.start()

    def start(self) -> None:
        """Step while there is work."""
        self._idle = False
        self._next = self._time.call_soon(self._begin)

    def stop(self) -> None:
        """Do not, from here on. Idempotent."""
        if self._next is not None:
            self._next.cancel()
        self._idle = False
        self.over()

    def _begin(self) -> None:
        rows = self.begin()
        self._idle = not rows
        if rows:
            taken = self._seconds(rows)
            self._next = self._time.call_later(taken, self._end, rows, taken)

    def _end(self, rows: list[StepRow], taken: float) -> None:
        self.busy_s += taken
        self.steps += 1
        self.end(self._sample(rows))
        self._begin()

    def _sample(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        tokens: list[SampledToken | None] = []
        marks = self._marks
        for row in rows:
            if (sample := row.sample) is None:
                tokens.append(None)
                continue
            prompt = sample.prompt
            known = marks.get(id(prompt))
            if known is None or known[0] is not prompt:
                known = self._remember(prompt)
            tokens.append(SampledToken(_FIRST + (known[1] + len(sample.output)) % _TEXTS))
        return tokens

    def _remember(self, prompt: Sequence[int]) -> tuple[Sequence[int], int]:
        if len(self._marks) >= _MARKS_MAX:
            self._marks.clear()
        known = self._marks[id(prompt)] = (prompt, mark_of(prompt))
        return known


class SimulatedKV:
    """Is a `ReplicaKV` without bytes."""

    def __init__(self, spec: KVSpec, num_blocks: int, block_tokens: int) -> None:
        self.spec = spec
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens

    async def read(self, blocks: Sequence[int]) -> list[Buffer]:
        return [b""] * len(blocks)

    async def write(self, blocks: Sequence[int], payloads: Sequence[Buffer]) -> None:
        pass
