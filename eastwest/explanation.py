"""Why a request went where it went: what the router knew, what it chose, and how it turned out.

Plain values: a router makes them (`router.explaining`), clients get them, and `deploy.explain`
prints them.
"""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.types import Role


@dataclass(frozen=True, slots=True)
class WorkerEstimate:
    """How loaded a router took a worker to be.

    waiting_tokens: prompt tokens to compute before a new prompt's turn. sequences: that share its
    decode steps, with context_tokens in all. room_blocks: KV blocks that a new reservation can
    have. known_tokens: leading prompt tokens whose KV it was thought to have in memory.
    """

    worker_id: str
    epoch: int
    role: Role
    waiting_tokens: int
    sequences: int
    context_tokens: int
    room_blocks: int
    known_tokens: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted of a request at a pair; see `router.placement.Candidate`.

    own, others: what the request and others lose, in shares of targets. chosen: the pair that it
    was sent to.
    """

    prefill: str
    decode: str
    known_tokens: int
    queue_s: float
    prefill_s: float
    transfer_s: float
    step_s: float
    own: float
    others: float
    chosen: bool

    @property
    def score(self) -> float:
        """Less is better."""
        return self.own + self.others


@dataclass(frozen=True, slots=True)
class Decision:
    """One placement. Times are seconds since the request was accepted.

    waiting: requests that waited then, this one included. given_tokens: prompt, and output that was
    delivered before. prefill_known_tokens, decode_known_tokens: of the prompt, whose KV each was
    thought to have, or to load. lender: the worker that the prefill worker was to load from, "" for
    the store. predictions: best first, where the policy predicts;
    left_out: how many more it made. workers: those that mattered, of workers_up in all.
    loss: why the attempt was lost, at lost_s; "" where it was not.
    """

    at_s: float
    waiting: int
    given_tokens: int
    prefill: str
    decode: str
    blocks: int
    prefill_known_tokens: int
    decode_known_tokens: int
    lender: str
    reason: str
    predictions: tuple[Prediction, ...]
    left_out: int
    workers: tuple[WorkerEstimate, ...]
    workers_up: int
    loss: str = ""
    lost_s: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One part of what a request took, in seconds: None where nobody predicted, or measured, it."""

    part: str
    predicted_s: float | None
    measured_s: float | None

    @property
    def residual_s(self) -> float | None:
        """Measured less predicted."""
        if self.predicted_s is None or self.measured_s is None:
            return None
        return self.measured_s - self.predicted_s


@dataclass(frozen=True, slots=True)
class Explanation:
    """A request as its router saw it.

    state: queued, reserving, prefilling, decoding, completed, failed or refused. message: how it
    ended, where it did not end well. age_s: since it was accepted; ended_s: from then to its end,
    None while it runs. decisions_left_out: made between the first one and the rest. comparisons:
    of a request that has delivered a token.
    """

    request_id: str
    policy: str
    state: str
    message: str
    age_s: float
    ended_s: float | None
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    slo_ttft_s: float
    slo_tpot_s: float
    migrations: int
    decisions: tuple[Decision, ...]
    decisions_left_out: int
    comparisons: tuple[Comparison, ...]
