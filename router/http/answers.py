"""What a call gives back, as OpenAI's JSON: one object, or server-sent events.

Pure. Each chunk that carries text is one event at once. Tokens without text of their own (half a
character, the end token) and the last token go with the event that follows, so that a client
that times events measures tokens; the first token is told in any case.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Any

from eastwest.answers import Chunk
from eastwest.messages import ModelInfo
from eastwest.types import SampledToken, TopLogprob
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import finish_from_wire, logprobs_from_wire
from router.http.bodies import Form
from router.text import Tokenizer

DONE = b"data: [DONE]\n\n"
_PLACE = "\0"
# The least that a log-probability is told as; JSON has no infinity.
LOGPROB_MIN = -9999.0


def to_json(value: object) -> bytes:
    """Compact and all ASCII, so that no reader takes a character for the end of a line."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


@dataclass(slots=True)
class Answer:
    """One call's answer while it grows: `chunk` any number of times, then `last`; or `whole`.

    created_s: seconds since 1970. max_tokens: the request's own. model: the one that answers.
    """

    form: Form
    request_id: str
    created_s: int
    model: ModelInfo
    prompt_tokens: int
    max_tokens: int
    tokenizer: Tokenizer
    _tokens: int = 0
    _told: bool = False
    _text: list[str] = field(default_factory=list)
    _logprobs: list[SampledToken] = field(default_factory=list)
    _offset: int = 0  # characters of all tokens whose log-probabilities are told
    # What stands before and after the text of each event that tells no more than text.
    _around: tuple[bytes, bytes] | None = None

    def chunk(self, chunk: Chunk) -> bytes:
        """The events to send for it, none while it waits for the next."""
        self._tokens += len(chunk.token_ids)
        if chunk.text:
            self._text.append(chunk.text)
        self._logprobs.extend(chunk.logprobs)
        if self._tokens >= self.max_tokens or (self._told and not self._text):
            return b""
        if not self._told:
            first = event(self._next(self._delta(), None))
            self._around = self._template()
            return first
        if self._around is None or self._logprobs:
            return event(self._next(self._delta(), None))
        text = encode_basestring_ascii("".join(self._text)).encode()
        self._text.clear()
        return text.join(self._around)

    def last(self, complete: inference.GenerateComplete) -> bytes:
        """The events that end the stream."""
        choice = {**self._delta(ending=True), **_ending(complete, self.model)}
        final = self._next(choice, complete)
        if self.form.timing:
            final["timing"] = timing(complete)
        events = [event(final)]
        if self.form.usage:
            usage = self._usage(complete.usage.completion_tokens, complete.usage.cached_tokens)
            events.append(event({**self._head(stream=True), "choices": [], "usage": usage}))
        return b"".join((*events, DONE))

    def whole(self, complete: inference.GenerateComplete) -> bytes:
        """The one object of an answer that is not streamed."""
        self._logprobs.extend(logprobs_from_wire(complete.logprobs))
        choice: dict[str, Any] = {"index": 0}
        if self.form.chat:
            message = {"role": "assistant", "content": complete.text, "refusal": None}
            choice["message"] = message
        else:
            choice["text"] = complete.text
        choice["logprobs"] = self._take_logprobs()
        choice.update(_ending(complete, self.model))
        usage = self._usage(complete.usage.completion_tokens, complete.usage.cached_tokens)
        answer = {**self._head(stream=False), "choices": [choice], "usage": usage}
        if self.form.timing:
            answer["timing"] = timing(complete)
        return to_json(answer)

    # Inside.

    def _template(self) -> tuple[bytes, bytes] | None:
        """An event cut where its text goes, if that is all that sets it apart from the next."""
        if self.form.usage_so_far or self.form.top_logprobs is not None:
            return None
        self._text.append(_PLACE)
        cut = event(self._next(self._delta(), None)).split(encode_basestring_ascii(_PLACE).encode())
        return (cut[0], cut[1]) if len(cut) == 2 else None

    def _head(self, *, stream: bool) -> dict[str, Any]:
        if self.form.chat:
            prefix, kind = "chatcmpl", "chat.completion.chunk" if stream else "chat.completion"
        else:
            prefix, kind = "cmpl", "text_completion"
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": kind,
            "created": self.created_s,
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
        }

    def _next(
        self, choice: dict[str, Any], complete: inference.GenerateComplete | None
    ) -> dict[str, Any]:
        """One event's object."""
        told = {**self._head(stream=True), "choices": [choice]}
        if self.form.usage_so_far:
            cached = 0 if complete is None else complete.usage.cached_tokens
            tokens = self._tokens if complete is None else complete.usage.completion_tokens
            told["usage"] = self._usage(tokens, cached)
        elif self.form.usage:
            told["usage"] = None
        return told

    def _delta(self, *, ending: bool = False) -> dict[str, Any]:
        """The choice of an event, with all that has gathered."""
        text = "".join(self._text)
        self._text.clear()
        choice: dict[str, Any] = {"index": 0}
        if self.form.chat:
            delta = {} if self._told else {"role": "assistant"}
            if text or not ending or not self._told:
                delta["content"] = text
            choice["delta"] = delta
        else:
            choice["text"] = text
        self._told = True
        choice["logprobs"] = self._take_logprobs()
        choice["finish_reason"] = None
        return choice

    def _usage(self, tokens: int, cached_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }

    def _take_logprobs(self) -> dict[str, Any] | None:
        """The log-probabilities that have gathered, in the shape of the form."""
        if self.form.top_logprobs is None or not self._logprobs:
            return None
        entries, self._logprobs = self._logprobs, []
        if self.form.chat:
            return {"content": [self._chat_entry(entry) for entry in entries], "refusal": None}
        offsets, texts = [], []
        for entry in entries:
            texts.append(self.tokenizer.token_text(entry.token))
            offsets.append(self._offset)
            self._offset += len(texts[-1])
        return {
            "text_offset": offsets,
            "tokens": texts,
            "token_logprobs": [_bounded(entry.logprob) for entry in entries],
            "top_logprobs": [self._top(e) for e in entries] if self.form.top_logprobs else None,
        }

    def _chat_entry(self, entry: SampledToken) -> dict[str, Any]:
        top = [self._named(t.token, t.logprob) for t in entry.top]
        return {**self._named(entry.token, entry.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.tokenizer.token_text(token)
        # A token that is part of a character has no text of its own to spell in bytes.
        spelled = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": _bounded(logprob), "bytes": spelled}

    def _top(self, entry: SampledToken) -> dict[str, float]:
        """The likeliest tokens and the chosen one; of tokens with one text, the likeliest."""
        ranked: Iterable[SampledToken | TopLogprob] = (*entry.top, entry)
        named: dict[str, float] = {}
        for one in ranked:
            named.setdefault(self.tokenizer.token_text(one.token), _bounded(one.logprob))
        return named


def timing(complete: inference.GenerateComplete) -> dict[str, Any]:
    """Where the time went and which workers served, under the names of inference.proto."""
    parts = complete.timing
    known = {
        f.name: getattr(parts, f.name)
        for f in parts.DESCRIPTOR.fields
        if not f.has_presence or parts.HasField(f.name)
    }
    return {
        **known,
        "prefill_worker": complete.prefill_worker,
        "decode_worker": complete.decode_worker,
        "transfer_bytes": complete.transfer_bytes,
        "transfer_ns": complete.transfer_ns,
        "migrations": complete.usage.migrations,
        "recomputed_tokens": complete.usage.recomputed_tokens,
    }


def _ending(complete: inference.GenerateComplete, model: ModelInfo) -> dict[str, Any]:
    """Why it ended; stop_reason: the stop string or stop token, None for the model's own end."""
    finish = finish_from_wire(complete.finish_reason)
    reason: str | int | None = None
    match complete.WhichOneof("matched_stop"):
        case "matched_stop_str":
            reason = complete.matched_stop_str
        case "matched_token_id" if complete.matched_token_id not in model.eos_ids:
            reason = complete.matched_token_id
    return {"finish_reason": None if finish is None else finish.value, "stop_reason": reason}


def _bounded(logprob: float | None) -> float:
    return LOGPROB_MIN if logprob is None else max(logprob, LOGPROB_MIN)
