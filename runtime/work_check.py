"""What a worker accepts from a router: nothing that could make an engine step fail.

Routers check what clients send; a worker checks again, since one bad row would end the step of
every sequence that shares it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eastwest.clock import DURATION_MAX_S
from eastwest.errors import InvalidArgument
from eastwest.messages import ModelInfo, Prefill, Reserve


def check_work(model: ModelInfo, command: Reserve | Prefill) -> NDArray[np.int64]:
    """What is given, as numbers to compute with. Raises `InvalidArgument` naming the first thing
    that this model cannot run."""
    prompt, sampling = command.prompt, command.sampling
    if not prompt:
        raise InvalidArgument("the prompt is empty; allowed: at least one token")
    given = np.asarray(command.given, dtype=np.int64)
    # Without a sign, what is below 0 is above all else.
    if given.view(np.uint64).max() >= model.vocab_size:
        part = given[: len(prompt)].view(np.uint64)
        name = "a prompt token" if part.max() >= model.vocab_size else "an output token"
        raise InvalidArgument(f"{name} is outside 0 to {model.vocab_size - 1}")
    if len(command.output) >= max(1, command.max_tokens):
        raise InvalidArgument(
            f"{len(command.output)} output tokens were generated already; allowed: fewer than "
            f"max_tokens ({command.max_tokens})"
        )
    if command.max_tokens < 1 or len(prompt) + command.max_tokens > model.context_tokens:
        raise InvalidArgument(
            f"prompt and output have {len(prompt)} + {command.max_tokens} tokens; allowed: at "
            f"least one of each, together up to {model.context_tokens}"
        )
    check_timeout(command.timeout_s)
    if not sampling.greedy and sampling.seed is None:
        raise InvalidArgument("seed is missing; allowed: absent only where temperature is 0")
    if any(t >= model.vocab_size for t in sampling.stop_token_ids):
        raise InvalidArgument(f"a stop token is outside 0 to {model.vocab_size - 1}")
    sampling.validate()
    return given


def check_timeout(timeout_s: float) -> None:
    """Raise `InvalidArgument` where what is left of a deadline is nothing, or endless."""
    if not 0 < timeout_s <= DURATION_MAX_S:
        raise InvalidArgument(
            f"timeout_s is {timeout_s}; allowed: above 0 up to {DURATION_MAX_S:g}"
        )
