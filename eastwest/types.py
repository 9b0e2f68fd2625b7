"""The values that every room speaks of: sampling parameters, tokens, usage, roles."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from eastwest.errors import InvalidArgument
from eastwest.value import value


class Role(enum.StrEnum):
    """What a replica's step budget is spent on; a budget, not a kind of process."""

    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"


class Tier(enum.StrEnum):
    """Where KV rests: in the memory of a worker's devices, of its host, or in the offline store."""

    DEVICE = "device"
    HOST = "host"
    EXTERNAL = "external"


class Liveness(enum.StrEnum):
    """How a router sees a worker."""

    CONNECTING = "connecting"
    UP = "up"
    DRAINING = "draining"
    DOWN = "down"


class FinishReason(enum.StrEnum):
    """Why a sequence ended, in the field's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request should see. ttft_s: until its first token; tpot_s: for each one after it, on
    average."""

    ttft_s: float = 2.0
    tpot_s: float = 0.1


LOGPROBS_MAX = 20
SEED_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. `validate` holds the allowed ranges.

    temperature: 0 is greedy. top_k: 0 is off. max_tokens: None takes the server's default.
    seed: None draws one at admission. logprobs: None for none, n for the chosen token and the
    n most likely ones. stop: strings that end the text and are not part of it. stop_token_ids:
    tokens that end it like the model's own end token. min_tokens: no ending token before it.
    Penalties follow the field: repetition over prompt and output, presence and frequency over
    the output alone.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def validate(self) -> None:
        """Raise `InvalidArgument` naming the first field that is out of range."""
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("top_k", self.top_k, 0, 2**31 - 1)
        _in_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise InvalidArgument(
                    f"min_tokens is {self.min_tokens}; allowed: at most max_tokens "
                    f"({self.max_tokens})"
                )
        if self.seed is not None:
            _in_range("seed", self.seed, 0, SEED_MAX)
        if self.logprobs is not None:
            _in_range("logprobs", self.logprobs, 0, LOGPROBS_MAX)
        if any(not s for s in self.stop):
            raise InvalidArgument("stop holds an empty string; allowed: non-empty strings")
        if any(t < 0 for t in self.stop_token_ids):
            raise InvalidArgument("stop_token_ids holds a negative id; allowed: 0 and above")


def _in_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    inside = math.isfinite(value) and low <= value <= high and not (open_low and value == low)
    if not inside:
        left = "above" if open_low else "from"
        raise InvalidArgument(f"{name} is {value}; allowed: {left} {low} up to {high}")


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the most likely tokens at a position; natural logarithm."""

    token: int
    logprob: float


@value
class SampledToken:
    """One output token. `logprob` is None unless logprobs were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request.

    cached_tokens: prompt tokens whose KV the decode worker had, or that were loaded for it.
    loaded_tokens: those of them that were read from the offline store. computed_tokens:
    prompt tokens that went through the model. These three are of the attempt that gave the first
    token. migrations: how often the request was moved to other workers after it, its former ones
    lost; recomputed_tokens: tokens of prompt and output that went through the model again for
    that.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    loaded_tokens: int = 0
    computed_tokens: int = 0
    migrations: int = 0
    recomputed_tokens: int = 0
