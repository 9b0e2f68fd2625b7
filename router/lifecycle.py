"""One request's life: the state machine between its client and its workers.

              place            reserved              prefilled
    QUEUED ─────────▶ RESERVING ───────▶ PREFILLING ──────────▶ DECODING ──finish──▶ ENDED
       ▲                  │                   │                                        ▲
       └────── retry ─────┴───────────────────┘        from every state: fail, stop ───┘

    QUEUED      holds nothing anywhere
    RESERVING   the decode worker makes room
    PREFILLING  the prefill worker computes the prompt, its KV moving meanwhile
    DECODING    the first token is delivered; the decode worker steps as soon as the KV is there
    ENDED       `End` is emitted, once

Worker streams are not ordered between each other: the decode worker's first tokens may be known
before the prefill worker's. They are held until then. An attempt is lost with either of its
workers and begun anew as long as no token is delivered; what was left on the other is aborted.
Each attempt has a work id of its own, so nothing said of a former one is taken for this one's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from eastwest.clock import ns, seconds
from eastwest.errors import (
    DeadlineExceeded,
    EastWestError,
    ErrorCode,
    Phase,
    Unavailable,
    error_from,
)
from eastwest.messages import (
    Failed,
    FirstStep,
    Prefill,
    Prefilled,
    Reserve,
    Reserved,
    SequenceOutput,
)
from eastwest.types import FinishReason, SampledToken, Usage
from router.fleet import Share, Worker
from router.placement import Placement
from router.requests import Action, Deliver, End, Marks, Outcome, Request


class State(enum.Enum):
    QUEUED = enum.auto()
    RESERVING = enum.auto()
    PREFILLING = enum.auto()
    DECODING = enum.auto()
    ENDED = enum.auto()


_PHASES = {
    State.QUEUED: Phase.QUEUE,
    State.RESERVING: Phase.RESERVATION,
    State.PREFILLING: Phase.PREFILL,
    State.DECODING: Phase.DECODE,
}


@dataclass(slots=True, eq=False)
class Lifecycle:
    """A request from admission to its end. Methods append the actions to perform to `out`.

    attempts_left: placements that may still be lost. wake_ns: when `expire` must be called.
    failed_on: workers that lost an attempt; others are preferred. Of the latest attempt: work_id,
    placement. error: how it ended, where it did not end well.
    """

    request: Request
    attempts_left: int
    marks: Marks
    wake_ns: int
    state: State = State.QUEUED
    failed_on: list[Worker] = field(default_factory=list)
    work_id: str = ""
    placement: Placement | None = None
    error: EastWestError | None = None
    _decode: Worker | None = None
    _holders: list[Worker] = field(default_factory=list)
    _tokens: list[SampledToken] = field(default_factory=list)
    _held: list[SequenceOutput] = field(default_factory=list)
    _reserved: Reserved | None = None
    _computed_tokens: int = 0
    _first_step: FirstStep | None = None

    @property
    def phase(self) -> Phase:
        """Where the request is, in the words of errors."""
        if self.state is State.DECODING and self.marks.second_token_ns is None:
            return Phase.TRANSFER
        return _PHASES[self.state]

    @property
    def settling(self) -> bool:
        """Ended, yet its KV may still be on its way to rest: the output was one token, and the
        prefill worker has not been told to stop."""
        return self.state is State.ENDED and bool(self._holders)

    def share(self, worker: Worker) -> Share:
        """What this request adds to `worker`'s load, by its state."""
        placement = self.placement
        if placement is None or self.state in (State.QUEUED, State.ENDED):
            return Share()
        here = worker is placement.decode
        prefilling = worker is placement.prefill and self.state is not State.DECODING
        return Share(
            prompt_tokens=self._to_compute if prefilling else 0,
            sequences=int(here),
            asked_blocks=placement.blocks if here and self.state is State.RESERVING else 0,
        )

    # Forward.

    def place(self, placement: Placement, work_id: str, now_ns: int, out: list[Action]) -> None:
        """QUEUED to RESERVING: ask the decode worker for room."""
        assert self.state is State.QUEUED
        request = self.request
        self.state = State.RESERVING
        self.work_id, self.placement, self._decode = work_id, placement, placement.decode
        self.marks.dispatched_ns = now_ns
        placement.prefill.prompt_tokens += self._to_compute
        placement.decode.expect(placement.blocks)
        self._holders.append(placement.decode)
        command = Reserve(
            request_id=work_id,
            salt=request.salt,
            session_id=request.session_id,
            prompt=request.prompt,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            source=placement.prefill.info.source(),
            timeout_s=seconds(request.deadline_ns - now_ns),
        )
        out.append(placement.decode.send(command))

    def reserved(self, worker: Worker, event: Reserved, now_ns: int, out: list[Action]) -> None:
        """RESERVING to PREFILLING: there is room; hand its ticket to the prefill worker."""
        if self.state is not State.RESERVING or worker is not self._decode:
            return
        request, placement = self.request, self._placed()
        if now_ns >= request.deadline_ns:
            self.expire(now_ns, out)
            return
        self.state = State.PREFILLING
        self.marks.reserved_ns = now_ns
        self._reserved = event
        worker.grant(placement.blocks)
        if placement.prefill is not worker:
            self._holders.append(placement.prefill)
        command = Prefill(
            request_id=self.work_id,
            salt=request.salt,
            prompt=request.prompt,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            ticket=event.ticket,
            timeout_s=seconds(request.deadline_ns - now_ns),
        )
        out.append(placement.prefill.send(command))

    def prefilled(self, worker: Worker, event: Prefilled, now_ns: int, out: list[Action]) -> None:
        """PREFILLING to DECODING, or ENDED where the first token is the last."""
        placement = self._placed()
        if self.state is not State.PREFILLING or worker is not placement.prefill:
            return
        self.state = State.DECODING
        worker.prompt_tokens -= self._to_compute
        self._computed_tokens = event.computed_tokens
        self.marks.prefill_queue_ns = event.queue_ns
        self.marks.first_token_ns = self.marks.last_token_ns = now_ns
        self._tokens.append(event.token)
        out.append(Deliver(self.request.request_id, (event.token,)))
        if event.finish is not None:
            # The workers are not told: the KV goes on to its rest with the session. Where one
            # worker is both, there is nothing to move.
            if placement.prefill is placement.decode:
                self._holders.clear()
            self._finish(event.finish, out)
        held, self._held = self._held, []
        for output in held:
            self.stepped(placement.decode, output, now_ns, out)

    def stepped(
        self, worker: Worker, output: SequenceOutput, now_ns: int, out: list[Action]
    ) -> None:
        """New tokens, or with the first of them the end of TRANSFER. Called for every token."""
        if worker is not self._decode:
            return
        if self.state is not State.DECODING:
            if self.state is State.PREFILLING:
                self._held.append(output)
            return
        if tokens := output.tokens:
            if self.marks.second_token_ns is None:
                self._joined(output.first_step, now_ns)
            self.marks.last_token_ns = now_ns
            self._tokens.extend(tokens)
            out.append(Deliver(self.request.request_id, tokens))
        if output.finish is not None:
            self._holders.clear()
            self._finish(output.finish, out)

    def _joined(self, first: FirstStep | None, now_ns: int) -> None:
        """The decode worker has the KV, so the prefill worker is done."""
        self.marks.second_token_ns = now_ns
        if (prefill := self._placed().prefill) is not self._decode:
            self._drop(prefill)
        if first is not None:
            self._first_step = first
            self.marks.import_ns = first.import_ns
            self.marks.decode_queue_ns = first.decode_queue_ns
            self.marks.first_step_ns = first.first_step_ns

    # Back, and out.

    def failed(self, worker: Worker, event: Failed, out: list[Action]) -> None:
        """A worker has ended its part, and holds nothing any more."""
        if not self._needs(worker):
            return
        if event.code is ErrorCode.OVERLOADED and not self._tokens:
            # Refused, not lost: nothing was tried. The deadline bounds how often.
            self._drop(worker)
            self._retry(out)
            return
        self._drop(worker)
        error = error_from(event.code, event.message, phase=event.phase)
        if event.code is ErrorCode.DEADLINE_EXCEEDED:
            # The same deadline as ours, seen by another clock; where the request was, we know.
            error = self._too_late()
        elif error.status.retriable:
            error = Unavailable(f"{worker} failed: {event.message}", phase=event.phase)
        self._lose(worker, error, out)

    def bereave(self, worker: Worker, reason: str, now_ns: int, out: list[Action]) -> None:
        """A worker is gone, or silent and treated as such."""
        if not self._needs(worker):
            return
        if self.phase is Phase.TRANSFER and worker is not self._decode:
            # Its KV may have arrived in full. Decode will show; if not in the time of a lease,
            # it has not.
            assert self._reserved is not None
            self.wake_ns = min(self.wake_ns, now_ns + ns(self._reserved.ticket.lease_s))
            return
        self._lose(worker, Unavailable(f"{worker} is gone ({reason})", phase=self.phase), out)

    def expire(self, now_ns: int, out: list[Action]) -> None:
        """`wake_ns` has come."""
        if now_ns >= self.request.deadline_ns:
            self.fail(self._too_late(), out)
        elif self.phase is Phase.TRANSFER:
            message = f"{self._placed().prefill} was gone before all of its KV had arrived"
            self.fail(Unavailable(message, phase=Phase.TRANSFER), out)
        else:
            self.wake_ns = self.request.deadline_ns

    def stop(self, keep_tokens: int, out: list[Action]) -> None:
        """End well, with the first `keep_tokens` of the tokens delivered so far."""
        assert 0 <= keep_tokens <= len(self._tokens) > 0
        del self._tokens[keep_tokens:]
        self._abort(out)
        self._finish(FinishReason.STOP, out)

    def fail(self, error: EastWestError, out: list[Action]) -> None:
        """End with `error`, or with one like it that names the phase where it names none."""
        assert self.state is not State.ENDED
        if error.phase is None:
            hint = error.retry_after_s
            error = type(error)(error.message, phase=self.phase, retry_after_s=hint)
        self._abort(out)
        self._release()
        self.state = State.ENDED
        self.error = error
        out.append(End(self.request.request_id, error))

    def _needs(self, worker: Worker) -> bool:
        """Whether losing `worker` matters: not the prefill worker, once decode has begun."""
        placement = self.placement
        if placement is None or self.state in (State.QUEUED, State.ENDED):
            return False
        if worker is placement.decode:
            return True
        return worker is placement.prefill and self.phase is not Phase.DECODE

    def _lose(self, worker: Worker, error: EastWestError, out: list[Action]) -> None:
        """The attempt is lost with `worker`: begin anew, or end."""
        self.failed_on.append(worker)
        self.attempts_left -= 1
        if error.status.retriable and self.attempts_left and not self._tokens:
            self._retry(out)
        else:
            self.fail(error, out)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed in phase {self.phase}", phase=self.phase)

    def _retry(self, out: list[Action]) -> None:
        self._abort(out)
        self._release()
        self._held.clear()
        self.state = State.QUEUED

    def _drop(self, worker: Worker) -> None:
        """The worker holds nothing of this attempt any more."""
        if worker in self._holders:
            self._holders.remove(worker)

    def _abort(self, out: list[Action]) -> None:
        for worker in self._holders:
            worker.abort(self.work_id, out)
        self._holders.clear()

    def _finish(self, finish: FinishReason, out: list[Action]) -> None:
        placement, reserved = self._placed(), self._reserved
        assert reserved is not None
        self._release()
        self.state = State.ENDED
        usage = Usage(
            prompt_tokens=len(self.request.prompt),
            completion_tokens=len(self._tokens),
            cached_tokens=reserved.cached_tokens + reserved.loaded_tokens,
            loaded_tokens=reserved.loaded_tokens,
            computed_tokens=self._computed_tokens,
        )
        outcome = Outcome(
            finish=finish,
            tokens=tuple(self._tokens),
            usage=usage,
            marks=self.marks,
            prefill_worker=placement.prefill.worker_id,
            decode_worker=placement.decode.worker_id,
            transfer_bytes=self._first_step.transfer_bytes if self._first_step else 0,
            transfer_ns=self._first_step.transfer_ns if self._first_step else 0,
        )
        out.append(End(self.request.request_id, outcome))

    def _release(self) -> None:
        """Take this request out of its workers' load."""
        if self.state is State.QUEUED:
            return
        placement = self._placed()
        if self.state in (State.RESERVING, State.PREFILLING):
            placement.prefill.prompt_tokens -= self._to_compute
        granted = self.state is not State.RESERVING
        placement.decode.release(placement.blocks, granted=granted)

    @property
    def _to_compute(self) -> int:
        """Prompt tokens that the prefill worker is thought to have no KV of."""
        return len(self.request.prompt) - self._placed().prefill_known_tokens

    def _placed(self) -> Placement:
        assert self.placement is not None
        return self.placement
