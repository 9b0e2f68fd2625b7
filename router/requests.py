"""What enters and leaves the router's scheduler: requests, actions, outcomes.

The scheduler is plain synchronous code: it is told what happened and the time, and returns
actions. The shell (`router.shell`) performs them and owns every socket, stream and timer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from eastwest.errors import EastWestError
from eastwest.messages import Command
from eastwest.timing import SecondTokenParts, Timing, TtftParts, split
from eastwest.types import FinishReason, SampledToken, SamplingParams, Slo, Usage
from eastwest.value import value

DEFAULT_SLO = Slo()


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request. Times are nanoseconds of the router's clock.

    sampling: with its seed resolved. max_tokens: resolved, prompt + max_tokens fits the context.
    salt: the tenant's cache salt. session_id: "" for none. priority: more is more urgent, within
    a tenant. slo: what placement aims at; usual_slo: what it aims at for others, where that is
    something else. client_id: what its client calls it.
    """

    request_id: str
    salt: str
    session_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    accepted_ns: int
    deadline_ns: int
    priority: int = 0
    slo: Slo = DEFAULT_SLO
    usual_slo: Slo | None = None
    client_id: str = ""


@dataclass(slots=True)
class Marks:
    """When a request passed each point of its life, and what its workers said of theirs.

    Router times are on one clock; worker durations are fitted into them by `timing`.
    """

    accepted_ns: int
    admitted_ns: int = 0
    dispatched_ns: int = 0
    reserved_ns: int = 0
    first_token_ns: int = 0
    second_token_ns: int | None = None
    last_token_ns: int = 0
    prefill_queue_ns: int = 0
    import_ns: int = 0
    decode_queue_ns: int = 0
    first_step_ns: int = 0
    migration_ns: int = 0

    def timing(self, delivered_ns: int) -> Timing:
        """The request's timing, its first token having reached the client's stream then."""
        (queued,), prefill = split(self.first_token_ns - self.reserved_ns, [self.prefill_queue_ns])
        ttft = TtftParts(
            admission_ns=self.admitted_ns - self.accepted_ns,
            queue_ns=self.dispatched_ns - self.admitted_ns + queued,
            reservation_ns=self.reserved_ns - self.dispatched_ns,
            prefill_ns=prefill,
            delivery_ns=delivered_ns - self.first_token_ns,
        )
        second = None
        if self.second_token_ns is not None:
            gap = self.second_token_ns - self.first_token_ns
            parts = [self.migration_ns, self.first_step_ns, self.decode_queue_ns, self.import_ns]
            (moved, step, queue, imported), exposed = split(gap, parts)
            second = SecondTokenParts(exposed, imported, queue, step, moved)
        return Timing(ttft, second, self.last_token_ns - self.accepted_ns)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request that ended well. The workers are those of its last attempt."""

    finish: FinishReason
    tokens: tuple[SampledToken, ...]
    usage: Usage
    marks: Marks
    prefill_worker: str
    decode_worker: str
    transfer_bytes: int = 0
    transfer_ns: int = 0


@value
class Send:
    """Put a command on a worker's stream, meant for this incarnation of it."""

    worker_id: str
    epoch: int
    command: Command


@value
class Deliver:
    """Hand new tokens to the client's stream; each token of a request exactly once, in order."""

    request_id: str
    tokens: tuple[SampledToken, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The request's one ending. Nothing follows it."""

    request_id: str
    result: Outcome | EastWestError


Action = Send | Deliver | End


@dataclass(slots=True)
class PhaseHits:
    """Of prompts that workers of one phase took: tokens in all, tokens whose KV they were thought
    to have or to find in the store, and tokens whose KV they then had or found."""

    prompt_tokens: int = 0
    predicted_tokens: int = 0
    found_tokens: int = 0

    def count(self, prompt_tokens: int, predicted_tokens: int, found_tokens: int) -> None:
        """One more prompt."""
        self.prompt_tokens += prompt_tokens
        self.predicted_tokens += predicted_tokens
        self.found_tokens += found_tokens


@dataclass(slots=True)
class Counters:
    """Endings since the start, and how often those requests were moved."""

    completed: int = 0
    migrations: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    def ended(self, error: EastWestError | None) -> None:
        """One more request; with an error, unless it ended well."""
        if error is None:
            self.completed += 1
        else:
            self.failed[error.code.value] = self.failed.get(error.code.value, 0) + 1
