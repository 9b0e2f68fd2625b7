"""Continuous batching: which sequences decode in the next step, and when each one ends.

    add ──▶ WAITING ──▶ RUNNING ──▶ finished or removed

Sequences join between steps, in order of arrival, as long as the batch has room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from eastwest.ports import SampleInput, StepRow
from eastwest.stopping import StopRule
from eastwest.types import FinishReason, SamplingParams


@dataclass(slots=True)
class Running:
    """A decoding sequence. `blocks` cover the prompt and max_tokens more. computed: tokens whose KV
    is present: all but the last one."""

    request_id: str
    prompt: Sequence[int]
    output: list[int]
    blocks: Sequence[int]
    params: SamplingParams
    stop_rule: StopRule
    steps: int = 0
    computed: int = field(init=False)
    _sample: SampleInput = field(init=False)

    def __post_init__(self) -> None:
        self.computed = len(self.prompt) + len(self.output) - 1
        # It sees the output grow; only while tokens are banned is there another one for each step.
        self._sample = SampleInput(self.params, self.prompt, self.output)

    def row(self) -> StepRow:
        output, rule, sample = self.output, self.stop_rule, self._sample
        if len(output) < rule.min_tokens:
            sample = replace(sample, banned=rule.banned(len(output)))
        return StepRow((output[-1],), self.computed, self.blocks, sample)

    def advance(self, token: int) -> FinishReason | None:
        """Append the token of a step; why it is the last, if it is."""
        output = self.output
        output.append(token)
        self.steps += 1
        self.computed += 1
        return self.stop_rule.finish(token, len(output))


class DecodeScheduler:
    """Knows sequences; the worker knows owners, transfers and streams."""

    def __init__(self, running_max: int) -> None:
        self._running_max = running_max
        self._sequences: dict[str, Running] = {}

    def add(self, sequence: Running) -> None:
        """A sequence whose KV is present up to its last output token, which is fed next."""
        assert sequence.request_id not in self._sequences
        assert sequence.output
        self._sequences[sequence.request_id] = sequence

    def remove(self, request_id: str) -> Running | None:
        """Forget a sequence. Idempotent."""
        return self._sequences.pop(request_id, None)

    def plan(self) -> list[Running]:
        """The batch of the next step: the oldest sequences, as many as may run."""
        return list(islice(self._sequences.values(), self._running_max))

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def running(self) -> int:
        return min(len(self._sequences), self._running_max)
