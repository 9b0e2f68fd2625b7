"""One attempt at a request: what its two workers hold of it, have said of it, and carry for it.

    ASKED ──reserved──▶ FILLING ──first token──▶ TAKING OVER ──first step──▶ DECODING
      └─────────────────────┴───────── lost, or over ─┴───────────────────────┘

    ASKED        the decode worker makes room
    FILLING      the prefill worker computes the prompt, and the output delivered before if any
    TAKING OVER  its token is known; the KV is on its way, or waits for the decode worker's step
    DECODING     the decode worker has shown that it has the KV; the prefill worker is done

A lost attempt leaves nothing behind: its workers are told to drop it, what they say of it later
has a work id that nobody knows any more, and the next attempt begins with what was delivered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from eastwest.messages import Reserved, SequenceOutput
from router.fleet import Share, Worker
from router.placement import Placement
from router.requests import Action


@dataclass(slots=True, eq=False)
class Attempt:
    """Methods move it on, and keep its workers' load estimates.

    given_tokens: prompt and output delivered before, all of which the prefill worker is given.
    resumed: whether there was such output. asked_ns: when room was asked for. tpot_s: the request's
    target. holders: workers that may hold something. held: decode output that has overtaken the
    prefill worker's token.
    """

    work_id: str
    placement: Placement
    given_tokens: int
    resumed: bool
    tpot_s: float
    asked_ns: int = 0
    reserved: Reserved | None = None
    filled: bool = False
    joined: bool = False
    holders: list[Worker] = field(default_factory=list)
    held: list[SequenceOutput] = field(default_factory=list)

    @property
    def prefill(self) -> Worker:
        return self.placement.prefill

    @property
    def decode(self) -> Worker:
        return self.placement.decode

    @property
    def to_compute_tokens(self) -> int:
        """What the prefill worker is thought to have no KV of."""
        return self.given_tokens - self.placement.prefill_known_tokens

    def share(self, worker: Worker) -> Share:
        """What it adds to `worker`'s load, until it is released."""
        here = worker is self.decode
        filling = worker is self.prefill and not self.filled
        return Share(
            prompt_tokens=self.to_compute_tokens if filling else 0,
            sequences=int(here),
            asked_blocks=self.placement.blocks if here and self.reserved is None else 0,
            context_tokens=self.given_tokens if here else 0,
            decoding=int(here and self.filled),
        )

    def needs(self, worker: Worker) -> bool:
        """Whether losing `worker` matters: not the prefill worker, once decode has begun."""
        return worker is self.decode or (worker is self.prefill and not self.joined)

    # Forward.

    def ask(self) -> None:
        """The reservation is about to be asked for."""
        if not self.prefill.prompt_tokens:
            self.prefill.prompts_ns = self.asked_ns
        self.prefill.prompt_tokens += self.to_compute_tokens
        self.decode.expect(self.placement.blocks, self.given_tokens)
        self.holders.append(self.decode)

    def grant(self, event: Reserved) -> None:
        """There is room; the prefill worker is about to be asked."""
        self.reserved = event
        self.decode.grant(self.placement.blocks)
        if self.prefill is not self.decode:
            self.holders.append(self.prefill)

    def fill(self, now_ns: int) -> None:
        """The prefill worker's token is known."""
        self.filled = True
        self.prefill.prompts_ns = now_ns
        self.decode.begin(self.tpot_s)
        self.prefill.prompt_tokens -= self.to_compute_tokens

    def join(self) -> None:
        """The decode worker has the KV, so the prefill worker is done."""
        self.joined = True
        if self.prefill is not self.decode:
            self.drop(self.prefill)

    # Out.

    def drop(self, worker: Worker) -> None:
        """The worker holds nothing of it any more."""
        if worker in self.holders:
            self.holders.remove(worker)

    def abort(self, out: list[Action]) -> None:
        """Whoever may hold something is told to drop it."""
        for worker in self.holders:
            worker.abort(self.work_id, out)
        self.holders.clear()

    def release(self) -> None:
        """Take it out of its workers' load. Called once."""
        if self.filled:
            self.decode.end(self.tpot_s)
        else:
            self.prefill.prompt_tokens -= self.to_compute_tokens
        granted = self.reserved is not None
        self.decode.release(self.placement.blocks, self.given_tokens, granted=granted)
