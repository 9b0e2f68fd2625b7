"""Forms prompt batches: which chunk of which prompt goes into the next engine step.

Prompts are served in order of arrival. A step takes whole remainders as long as they fit its
token budget and cuts the last one, so short prompts ride along with the end of a long one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``[start, stop)`` of a prompt, to run in one step."""

    job_id: str
    start: int
    stop: int


@dataclass(slots=True)
class _Prompt:
    total: int
    done: int


class PromptScheduler:
    """Knows lengths only; the worker knows tokens and blocks."""

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._prompts: dict[str, _Prompt] = {}

    def add(self, job_id: str, total: int, done: int) -> None:
        """A prompt of `total` tokens, the KV of the first `done` of which is present."""
        assert 0 <= done < total
        assert job_id not in self._prompts
        self._prompts[job_id] = _Prompt(total, done)

    def remove(self, job_id: str) -> None:
        """Forget a prompt, finished or not. Idempotent."""
        self._prompts.pop(job_id, None)

    def plan(self) -> list[Chunk]:
        """The chunks of the next step; planning changes nothing."""
        budget = self._step_tokens
        chunks = []
        for job_id, prompt in self._prompts.items():
            take = min(budget, prompt.total - prompt.done)
            if take == 0:
                break
            chunks.append(Chunk(job_id, prompt.done, prompt.done + take))
            budget -= take
        return chunks

    def advance(self, chunk: Chunk) -> bool:
        """The chunk has run; True where it ended its prompt, which is then forgotten."""
        prompt = self._prompts[chunk.job_id]
        assert prompt.done == chunk.start
        prompt.done = chunk.stop
        if prompt.done < prompt.total:
            return False
        del self._prompts[chunk.job_id]
        return True

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens not computed yet."""
        return sum(p.total - p.done for p in self._prompts.values())

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._prompts

    def __len__(self) -> int:
        return len(self._prompts)
