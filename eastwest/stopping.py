"""When a sequence ends by its tokens: end tokens, stop tokens, length. Stop strings are text and
are judged where the text is made."""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.types import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class StopRule:
    """The token-level ending of one request.

    ending: tokens that end the text. min_tokens: none of them may be chosen before so many
    tokens. max_tokens: the length at which the sequence ends in any case.
    """

    ending: frozenset[int]
    min_tokens: int
    max_tokens: int

    @classmethod
    def of(cls, params: SamplingParams, eos_ids: tuple[int, ...], max_tokens: int) -> StopRule:
        eos = () if params.ignore_eos else eos_ids
        return cls(frozenset((*eos, *params.stop_token_ids)), params.min_tokens, max_tokens)

    def banned(self, generated: int) -> tuple[int, ...]:
        """Tokens that may not be chosen as the one after `generated` output tokens."""
        return tuple(sorted(self.ending)) if generated < self.min_tokens else ()

    def finish(self, token: int, generated: int) -> FinishReason | None:
        """Whether `token`, the output token number `generated` (from 1), is the last."""
        if token in self.ending:
            return FinishReason.STOP
        return FinishReason.LENGTH if generated >= self.max_tokens else None
