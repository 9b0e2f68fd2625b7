"""One request's output on its way to the client: tokens in, chunks and a completion out.

    OPEN ──end──▶ ENDED (result known, last chunks may be unwritten) ──run──▶ all written

The scheduler's side (`deliver`, `end`) never waits. The client's side (`run`) writes whatever has
gathered since its last write: a client that keeps up gets each token as it comes, one that lags
gets several in a chunk. What gathers is bounded by the request's own `max_tokens`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from eastwest.answers import Chunk
from eastwest.clock import Clock
from eastwest.errors import DeadlineExceeded, EastWestError, Phase
from eastwest.types import FinishReason, SampledToken
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import finish_to_wire, logprobs_to_wire, timing_to_wire, usage_to_wire
from router.requests import Outcome
from router.text import Detokenizer

Write = Callable[[Chunk | inference.GenerateComplete], Awaitable[None]]


class ClientStream:
    """Between one running request and its client's call.

    ending: tokens that end the text and are not part of it. stops: whether there are stop strings
    to look for. chunks: False where the client wants the completion only.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        ending: frozenset[int],
        stops: bool,
        chunks: bool,
        max_tokens: int,
        clock: Clock,
    ) -> None:
        self._detokenizer = detokenizer
        self._ending = ending
        self._stops = stops
        self._chunks = chunks
        self._max_tokens = max_tokens
        self._clock = clock
        self._tokens: list[SampledToken] = []
        self._texts: list[str] = []
        self._decoded = 0  # of _tokens
        self._sent_tokens = 0
        self._sent_texts = 0
        self._matched: str | None = None
        self._delivered_ns: int | None = None
        self._result: Outcome | EastWestError | None = None
        self._news = asyncio.Event()
        self._patience: asyncio.Timeout | None = None

    # The scheduler's side.

    def deliver(self, tokens: tuple[SampledToken, ...]) -> int | None:
        """Take new tokens. Where they complete a stop string: how many of all to keep."""
        if self._matched is not None:
            return None
        self._tokens.extend(tokens)
        assert len(self._tokens) <= self._max_tokens
        if not self._chunks and self._delivered_ns is None:
            self._delivered_ns = self._clock.now_ns()
        if self._stops:
            self._decode()
        self._news.set()
        return None if self._matched is None else len(self._tokens)

    def end(self, result: Outcome | EastWestError) -> None:
        """Take the request's one ending. An error does not wait for a client that lags."""
        assert self._result is None
        self._result = result
        if isinstance(result, EastWestError):
            if self._patience is not None:
                self._patience.reschedule(asyncio.get_running_loop().time())
        else:
            self._decode()
            rest = self._detokenizer.flush()
            self._texts.append(rest.text)
            self._matched = rest.stop
        self._news.set()

    # The client's side.

    @asynccontextmanager
    async def patience(self, timeout_s: float) -> AsyncIterator[None]:
        """Around all writing: what is blocked in it is given up when the request ends with an
        error, which is raised, or after `timeout_s`, with `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(timeout_s) as self._patience:
                yield
        except TimeoutError:
            if isinstance(self._result, EastWestError):
                raise self._result from None
            raise DeadlineExceeded(
                "the deadline passed before the client had read its output", phase=Phase.DELIVERY
            ) from None
        finally:
            self._patience = None

    async def run(self, write: Write) -> Outcome:
        """Write all chunks. Returns how the request ended, or raises the error it ended with."""
        while True:
            await self._news.wait()
            self._news.clear()
            result = self._result
            if isinstance(result, EastWestError):
                raise result
            if self._chunks and (chunk := self._next_chunk()) is not None:
                await write(chunk)
                if self._delivered_ns is None:
                    self._delivered_ns = self._clock.now_ns()
            if result is not None:
                return result

    def complete(self, request_id: str, outcome: Outcome) -> inference.GenerateComplete:
        """The completion, after `run`."""
        outcome = self._as_seen(outcome)
        assert self._delivered_ns is not None
        wire = inference.GenerateComplete(
            request_id=request_id,
            output_ids=self.token_ids,
            text=self.text,
            finish_reason=finish_to_wire(outcome.finish),
            usage=usage_to_wire(outcome.usage),
            timing=timing_to_wire(outcome.marks.timing(self._delivered_ns)),
            prefill_worker=outcome.prefill_worker,
            decode_worker=outcome.decode_worker,
            logprobs=logprobs_to_wire(self._tokens),
            transfer_bytes=outcome.transfer_bytes,
            transfer_ns=outcome.transfer_ns,
        )
        if self._matched is not None:
            wire.matched_stop_str = self._matched
        elif outcome.finish is FinishReason.STOP:
            wire.matched_token_id = self.token_ids[-1]
        return wire

    @property
    def text(self) -> str:
        """The text so far; after the end, all of it."""
        return "".join(self._texts)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens so far, an ending token or those of a stop string included."""
        return tuple(t.token for t in self._tokens)

    # Inside.

    def _decode(self) -> None:
        """Tokens to text; cuts the tokens behind a stop string."""
        ids = [t.token for t in self._tokens[self._decoded :]]
        if ids and ids[-1] in self._ending:
            ids.pop()
        delta = self._detokenizer.push(ids)
        if delta.text:
            self._texts.append(delta.text)
        if delta.stop is not None and self._matched is None:
            self._matched = delta.stop
            del self._tokens[self._decoded + delta.tokens :]
        self._decoded = len(self._tokens)

    def _next_chunk(self) -> Chunk | None:
        """All that is not sent yet; None where that is nothing."""
        self._decode()
        tokens = self._tokens[self._sent_tokens :]
        text = "".join(self._texts[self._sent_texts :])
        self._sent_tokens, self._sent_texts = len(self._tokens), len(self._texts)
        if not tokens and not text:
            return None
        ids = tuple([t.token for t in tokens])
        return Chunk(ids, text, tuple([t for t in tokens if t.logprob is not None]))

    def _as_seen(self, outcome: Outcome) -> Outcome:
        """The outcome, where a stop string was complete before the scheduler could know."""
        if self._matched is None:
            return outcome
        usage = replace(outcome.usage, completion_tokens=len(self._tokens))
        return replace(outcome, finish=FinishReason.STOP, usage=usage)
