"""Forms prompt batches: which chunk of which prompt goes into the next engine step.

Prompts are served in order of arrival. A step takes whole remainders as long as they fit its
token budget and cuts the last one, so short prompts ride along with the end of a long one. A
prompt that waits for stored KV lets others pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefill_pool.two_ends import TwoEnds


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``[start, stop)`` of a prompt, to run in one step."""

    job_id: str
    start: int
    stop: int


@dataclass(slots=True)
class _Prompt:
    """ends: set until those have met."""

    total: int
    done: int
    ends: TwoEnds | None = None

    @property
    def reach(self) -> int:
        return self.total if self.ends is None else self.ends.reach(self.done)

    @property
    def expected(self) -> int:
        """Tokens that are likely to be computed."""
        if self.ends is None:
            return self.total - self.done
        return self.ends.expected(self.done) + self.total - self.ends.stop

    def meet(self) -> None:
        """Go on behind what is loaded, where nothing is missing before it."""
        if self.ends is not None and self.ends.met(self.done):
            self.done, self.ends = self.ends.stop, None


class PromptScheduler:
    """Knows lengths only; the worker knows tokens and blocks."""

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._prompts: dict[str, _Prompt] = {}

    def add(self, job_id: str, total: int, done: int, ends: TwoEnds | None = None) -> None:
        """A prompt of `total` tokens, the KV of the first `done` of which is present. ends: of
        those behind, which are loaded meanwhile."""
        assert 0 <= done < total
        assert job_id not in self._prompts
        assert ends is None or (ends.start == done and ends.stop < total)
        self._prompts[job_id] = _Prompt(total, done, ends)

    def remove(self, job_id: str) -> None:
        """Forget a prompt, finished or not. Idempotent."""
        self._prompts.pop(job_id, None)

    def plan(self, budget: int | None = None) -> list[Chunk]:
        """The chunks of the next step; until they have run, or others are planned, nothing is
        loaded there. Else planning changes nothing. budget: of tokens, less than a step's most."""
        if budget is None:
            budget = self._step_tokens
        chunks = []
        for job_id, prompt in self._prompts.items():
            if budget == 0:
                break
            stop = min(prompt.done + budget, prompt.reach)
            if prompt.ends is not None:
                prompt.ends.claimed = stop
            if stop > prompt.done:
                chunks.append(Chunk(job_id, prompt.done, stop))
                budget -= stop - prompt.done
        return chunks

    def advance(self, chunk: Chunk) -> bool:
        """The chunk has run; True where it ended its prompt, which is then forgotten."""
        prompt = self._prompts[chunk.job_id]
        assert prompt.done == chunk.start
        prompt.done = chunk.stop
        prompt.meet()
        if prompt.done < prompt.total:
            return False
        del self._prompts[chunk.job_id]
        return True

    def meet(self, job_id: str) -> None:
        """More of a prompt is loaded, or nothing more is."""
        if (prompt := self._prompts.get(job_id)) is not None:
            prompt.meet()

    def present(self, job_id: str) -> int:
        """Leading tokens whose KV is there."""
        return self._prompts[job_id].done

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens not computed yet, but for those that are thought to be loaded."""
        return sum(prompt.expected for prompt in self._prompts.values())

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._prompts

    def __len__(self) -> int:
        return len(self._prompts)
