"""One request's life: the state machine between its client and its workers.

              place            reserved              prefilled
    QUEUED ─────────▶ RESERVING ───────▶ PREFILLING ──────────▶ DECODING ──finish──▶ ENDED
       ▲                  │                   │                    │                   ▲
       └── retry, move ───┴───────────────────┴────────────────────┘  from every state: fail, stop

    QUEUED      holds nothing anywhere; tokens may have been delivered
    RESERVING   the decode worker makes room
    PREFILLING  the prefill worker computes what is given, its KV moving meanwhile
    DECODING    its token is delivered; the decode worker steps as soon as the KV is there
    ENDED       `End` is emitted, once

Worker streams are not ordered between each other: the decode worker's first tokens may be known
before the prefill worker's. They are held until then.

An attempt (`router.attempt`) is lost with either of its workers, and the next one goes on behind
the tokens delivered so far: each worker draws a token from seed and position alone, so what comes
next is what would have come. Each attempt has a work id of its own, so nothing said of a former
one is taken for this one's. `attempts_left` bounds them all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from eastwest.errors import (
    DeadlineExceeded,
    EastWestError,
    ErrorCode,
    InvalidArgument,
    Phase,
    Unavailable,
    error_from,
)
from eastwest.messages import Failed, FirstStep, Prefilled, Reserved, SequenceOutput
from eastwest.types import FinishReason, SampledToken, Usage
from router.attempt import Attempt
from router.commands import prefill_command, reserve_command
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
    failed_on: workers that lost an attempt; suspects: their partners, where it was lost between
    them; others are preferred. attempt: the latest one, None before the first. loss: what ended the
    latest one that was lost. error: how it ended, where it did not end well. migrations: attempts
    lost or moved after the first token, each followed by another one. reseated: how often it
    gave up waiting for room, for room elsewhere.
    """

    request: Request
    attempts_left: int
    marks: Marks
    wake_ns: int
    state: State = State.QUEUED
    failed_on: list[Worker] = field(default_factory=list)
    suspects: list[Worker] = field(default_factory=list)
    attempt: Attempt | None = None
    loss: EastWestError | None = None
    error: EastWestError | None = None
    migrations: int = 0
    reseated: int = 0
    _tokens: list[SampledToken] = field(default_factory=list)
    _defective: bool = False
    _usage: Usage = field(default_factory=lambda: Usage(0, 0))
    _transfer_bytes: int = 0
    _transfer_ns: int = 0

    @property
    def work_id(self) -> str:
        """Of the latest attempt."""
        return self._tried().work_id

    @property
    def phase(self) -> Phase:
        """Where the request is, in the words of errors."""
        if self.state is State.DECODING and not self._tried().joined:
            return Phase.TRANSFER
        return _PHASES[self.state]

    @property
    def output_tokens(self) -> int:
        """Tokens delivered so far."""
        return len(self._tokens)

    @property
    def settling(self) -> bool:
        """Ended, yet its KV may still be on its way to rest: the last token came from the prefill
        worker, which has not been told to stop."""
        return self.state is State.ENDED and bool(self.attempt and self.attempt.holders)

    def share(self, worker: Worker) -> Share:
        """What this request adds to `worker`'s load, by its state."""
        if self.attempt is None or self.state in (State.QUEUED, State.ENDED):
            return Share()
        return self.attempt.share(worker)

    # Forward.

    def place(self, placement: Placement, work_id: str, now_ns: int, out: list[Action]) -> None:
        """QUEUED to RESERVING: ask the decode worker for room."""
        assert self.state is State.QUEUED
        request = self.request
        output = self._output()
        self.state = State.RESERVING
        given_tokens = len(request.prompt) + len(output)
        tpot_s = request.slo.tpot_s
        self.attempt = Attempt(work_id, placement, given_tokens, bool(output), tpot_s, now_ns)
        self.attempt.ask()
        if not output:
            self.marks.dispatched_ns = now_ns
        command = reserve_command(request, placement, work_id, output, now_ns)
        out.append(placement.decode.send(command))

    def reserved(self, worker: Worker, event: Reserved, now_ns: int, out: list[Action]) -> None:
        """RESERVING to PREFILLING: there is room; hand its ticket to the prefill worker."""
        request, attempt = self.request, self._tried()
        if self.state is not State.RESERVING or worker is not attempt.decode:
            return
        if now_ns >= request.deadline_ns:
            self.expire(now_ns, out)
            return
        self.state = State.PREFILLING
        attempt.grant(event)
        if not attempt.resumed:
            self.marks.reserved_ns = now_ns
        output = self._output()
        command = prefill_command(request, event, attempt, output, now_ns)
        out.append(attempt.prefill.send(command))

    def prefilled(self, worker: Worker, event: Prefilled, now_ns: int, out: list[Action]) -> None:
        """PREFILLING to DECODING, or ENDED where this token is the last."""
        attempt = self._tried()
        if self.state is not State.PREFILLING or worker is not attempt.prefill:
            return
        if len(self._tokens) >= self.request.max_tokens:
            self._overdone(worker, out)
            return
        self.state = State.DECODING
        attempt.fill(now_ns)
        if attempt.resumed:
            self._resumed(event, now_ns)
        else:
            self._begun(event, now_ns)
        self.marks.last_token_ns = now_ns
        self._tokens.append(event.token)
        out.append(Deliver(self.request.request_id, (event.token,)))
        if event.finish is not None:
            # The workers are not told: the KV goes on to its rest with the session. Where one
            # worker is both, there is nothing to move.
            if attempt.prefill is attempt.decode:
                attempt.holders.clear()
            self._finish(event.finish, out)
        held, attempt.held = attempt.held, []
        for output in held:
            self.stepped(attempt.decode, output, now_ns, out)

    def _begun(self, event: Prefilled, now_ns: int) -> None:
        """The first token of all."""
        reserved = self._tried().reserved
        assert reserved is not None
        prompt_tokens = len(self.request.prompt)
        here = reserved.cached_tokens + reserved.loaded_tokens
        uncomputed = prompt_tokens - event.computed_tokens
        self.marks.prefill_queue_ns = event.queue_ns
        self.marks.first_token_ns = now_ns
        self._usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=0,
            cached_tokens=max(here, min(here + event.loaded_tokens, uncomputed)),
            loaded_tokens=max(reserved.loaded_tokens, event.loaded_tokens),
            computed_tokens=event.computed_tokens,
        )

    def _resumed(self, event: Prefilled, now_ns: int) -> None:
        """The first token after a move."""
        recomputed = self._usage.recomputed_tokens + event.computed_tokens
        self._usage = replace(self._usage, recomputed_tokens=recomputed)
        if self.marks.second_token_ns is None:
            self.marks.second_token_ns = now_ns
            self.marks.migration_ns = now_ns - self.marks.first_token_ns

    def stepped(
        self, worker: Worker, output: SequenceOutput, now_ns: int, out: list[Action]
    ) -> None:
        """New tokens, or with the first of them the end of TRANSFER. Called for every token."""
        attempt = self.attempt
        assert attempt is not None
        if worker is not attempt.placement.decode:
            return
        if self.state is not State.DECODING:
            if self.state is State.PREFILLING:
                attempt.held.append(output)
            return
        if tokens := output.tokens:
            if len(self._tokens) + len(tokens) > self.request.max_tokens:
                self._overdone(worker, out)
                return
            if not attempt.joined:
                self._joined(attempt, output.first_step, now_ns)
            self.marks.last_token_ns = now_ns
            self._tokens.extend(tokens)
            out.append(Deliver(self.request.request_id, tokens))
        if output.finish is not None:
            attempt.holders.clear()
            self._finish(output.finish, out)

    def _joined(self, attempt: Attempt, first: FirstStep | None, now_ns: int) -> None:
        """The decode worker has the KV; whatever became of the prefill worker does not matter."""
        attempt.join()
        self.wake_ns = self.request.deadline_ns
        first = first or FirstStep(0, 0, 0, 0, 0)
        self._transfer_bytes += first.transfer_bytes
        self._transfer_ns += first.transfer_ns
        if self.marks.second_token_ns is None:
            self.marks.second_token_ns = now_ns
            self.marks.import_ns = first.import_ns
            self.marks.decode_queue_ns = first.decode_queue_ns
            self.marks.first_step_ns = first.first_step_ns

    # Back, and out.

    def failed(self, worker: Worker, event: Failed, out: list[Action]) -> None:
        """A worker has ended its part, and holds nothing any more."""
        attempt = self._tried()
        if not self.needs(worker):
            return
        attempt.drop(worker)
        error = error_from(event.code, event.message, phase=event.phase)
        if event.code is ErrorCode.OVERLOADED and not attempt.filled:
            # Refused, not lost: nothing was tried. The deadline bounds how often.
            self._retry(error, out)
            return
        if event.code is ErrorCode.DRAINING:
            self._move(error, out)
            return
        if event.code is ErrorCode.DEADLINE_EXCEEDED:
            # The same deadline as ours, seen by another clock; where the request was, we know.
            error = self._too_late()
        elif error.status.retriable or (attempt.resumed and isinstance(error, InvalidArgument)):
            # What others have taken is not the client's fault: this worker is too small for it.
            error = Unavailable(f"{worker} failed: {event.message}", phase=event.phase)
        if event.phase is Phase.TRANSFER:
            # Either end may be at fault, or what is between them.
            self.suspects += [w for w in (attempt.prefill, attempt.decode) if w is not worker]
        self._lose(worker, error, out)

    def _overdone(self, worker: Worker, out: list[Action]) -> None:
        """The worker goes on past what was asked for: nothing that it says can be relied on."""
        message = f"it gave more than max_tokens, {self.request.max_tokens}"
        self.failed(worker, Failed(self.work_id, ErrorCode.INTERNAL, message, self.phase), out)

    def bereave(
        self, worker: Worker, reason: str, patience_ns: int, now_ns: int, out: list[Action]
    ) -> None:
        """A worker is gone, or silent and treated as such. patience_ns: how long KV that may have
        left a prefill worker is given to show itself at the decode worker."""
        if not self.needs(worker):
            return
        if self.phase is Phase.TRANSFER and worker is not self._tried().decode:
            self.wake_ns = min(self.wake_ns, now_ns + patience_ns)
            return
        self._lose(worker, Unavailable(f"{worker} is gone ({reason})", phase=self.phase), out)

    def leave(self, worker: Worker, why: str, out: list[Action]) -> bool:
        """The worker is to be free of it: go on elsewhere, at no attempt's cost. False where there
        is nothing to leave, or only KV that is on its way from there. why: what is said of
        the worker in `loss`."""
        if not self.needs(worker):
            return False
        if self.phase is Phase.TRANSFER and worker is not self._tried().decode:
            return False
        self._move(Unavailable(f"{worker} {why}", phase=self.phase), out)
        return True

    def expire(self, now_ns: int, out: list[Action]) -> None:
        """`wake_ns` has come, or was moved since."""
        if now_ns >= self.request.deadline_ns:
            self.fail(self._too_late(), out)
        elif now_ns >= self.wake_ns:
            prefill = self._tried().prefill
            message = f"{prefill} was gone before all of its KV had arrived"
            self._lose(prefill, Unavailable(message, phase=Phase.TRANSFER), out)

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

    def needs(self, worker: Worker) -> bool:
        """Whether losing `worker` matters."""
        if self.attempt is None or self.state in (State.QUEUED, State.ENDED):
            return False
        return self.attempt.needs(worker)

    def _lose(self, worker: Worker, error: EastWestError, out: list[Action]) -> None:
        """The attempt is lost with `worker`: go on elsewhere, or end."""
        self.failed_on.append(worker)
        self.attempts_left -= 1
        # A defect may be the worker's; one that shows itself again is the request's.
        defect = error.code is ErrorCode.INTERNAL
        if not error.status.retriable and (not defect or self._defective):
            self.fail(error, out)
        elif not self.attempts_left:
            message = f"{error.message}; attempts made: {len(self.failed_on)}, allowed: no more"
            self.fail(type(error)(message, phase=error.phase), out)
        else:
            self._defective |= defect
            self.migrations += bool(self._tokens)
            self._retry(error, out)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed in phase {self.phase}", phase=self.phase)

    def _move(self, loss: EastWestError, out: list[Action]) -> None:
        # Where room was only asked for, nothing has run there.
        self.migrations += bool(self._tokens) and self.state is not State.RESERVING
        self._retry(loss, out)

    def _retry(self, loss: EastWestError, out: list[Action]) -> None:
        self.loss = loss
        self._abort(out)
        self._release()
        self.wake_ns = self.request.deadline_ns
        self.state = State.QUEUED

    def _abort(self, out: list[Action]) -> None:
        if self.attempt is not None:
            self.attempt.abort(out)

    def _release(self) -> None:
        """Take this request out of its workers' load."""
        if self.state is not State.QUEUED:
            self._tried().release()

    def _finish(self, finish: FinishReason, out: list[Action]) -> None:
        attempt = self._tried()
        self._release()
        self.state = State.ENDED
        usage = replace(
            self._usage, completion_tokens=len(self._tokens), migrations=self.migrations
        )
        outcome = Outcome(
            finish=finish,
            tokens=tuple(self._tokens),
            usage=usage,
            marks=self.marks,
            prefill_worker=attempt.prefill.worker_id,
            decode_worker=attempt.decode.worker_id,
            transfer_bytes=self._transfer_bytes,
            transfer_ns=self._transfer_ns,
        )
        out.append(End(self.request.request_id, outcome))

    def _output(self) -> tuple[int, ...]:
        return tuple(t.token for t in self._tokens)

    def _tried(self) -> Attempt:
        assert self.attempt is not None
        return self.attempt
