"""Sampling parameters, tokens, usage and timing on the wire."""

from __future__ import annotations

from collections.abc import Iterable

from eastwest.answers import Chunk
from eastwest.errors import InvalidArgument
from eastwest.timing import Timing
from eastwest.types import FinishReason, SampledToken, SamplingParams, TopLogprob, Usage
from eastwest.v1 import inference_pb2 as inference
from eastwest.v1 import worker_pb2 as worker

# Sums of a few of these are numbers that any message can hold.
NUMBER_MAX = 1 << 60
TOKENS_MAX = 1 << 24


def check_numbers(event: str, number_max: int, *numbers: int) -> None:
    """What a worker counts or measures is no negative number, and none without end."""
    for number in numbers:
        if not 0 <= number <= number_max:
            raise InvalidArgument(
                f"a number of {event} is {number}; allowed: from 0 up to {number_max}"
            )


_FINISH_TO_WIRE = {
    None: inference.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: inference.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference.FINISH_REASON_LENGTH,
    FinishReason.ABORT: inference.FINISH_REASON_ABORT,
    FinishReason.ERROR: inference.FINISH_REASON_ERROR,
}
_FINISH_FROM_WIRE = {wire: value for value, wire in _FINISH_TO_WIRE.items()}


def finish_to_wire(finish: FinishReason | None) -> inference.FinishReason:
    return _FINISH_TO_WIRE[finish]


def finish_from_wire(finish: inference.FinishReason) -> FinishReason | None:
    if finish not in _FINISH_FROM_WIRE:
        raise InvalidArgument(f"finish reason {finish} is unknown; allowed: 0 to 4")
    return _FINISH_FROM_WIRE[finish]


_SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "max_tokens", "min_tokens", "ignore_eos", "logprobs",
)  # fmt: skip


def sampling_to_wire(params: SamplingParams) -> inference.SamplingParams:
    present = {
        name: value for name in _SAMPLING_FIELDS if (value := getattr(params, name)) is not None
    }
    return inference.SamplingParams(
        stop=params.stop, stop_token_ids=params.stop_token_ids, **present
    )


def sampling_from_wire(wire: inference.SamplingParams) -> SamplingParams:
    """Absent fields take their defaults. Not validated: callers at the edge do that."""
    present = {name: getattr(wire, name) for name in _SAMPLING_FIELDS if wire.HasField(name)}
    return SamplingParams(stop=tuple(wire.stop), stop_token_ids=tuple(wire.stop_token_ids),
                          **present)  # fmt: skip


def token_to_wire(token: SampledToken) -> worker.SampledToken:
    return worker.SampledToken(
        token=token.token,
        logprob=token.logprob,
        top=[inference.TopLogprob(token=t.token, logprob=t.logprob) for t in token.top],
    )


def token_from_wire(wire: worker.SampledToken) -> SampledToken:
    return SampledToken(
        wire.token,
        wire.logprob if wire.HasField("logprob") else None,
        tuple(TopLogprob(t.token, t.logprob) for t in wire.top),
    )


def logprobs_to_wire(tokens: Iterable[SampledToken]) -> list[inference.TokenLogprob]:
    """Entries for those tokens that carry a log-probability."""
    return [
        inference.TokenLogprob(
            token=t.token,
            logprob=t.logprob,
            top=[inference.TopLogprob(token=x.token, logprob=x.logprob) for x in t.top],
        )
        for t in tokens
        if t.logprob is not None
    ]


def chunk_to_wire(chunk: Chunk) -> inference.GenerateStreamChunk:
    return inference.GenerateStreamChunk(
        token_ids=chunk.token_ids, text=chunk.text, logprobs=logprobs_to_wire(chunk.logprobs)
    )


def logprobs_from_wire(wire: Iterable[inference.TokenLogprob]) -> tuple[SampledToken, ...]:
    return tuple(
        SampledToken(t.token, t.logprob, tuple(TopLogprob(x.token, x.logprob) for x in t.top))
        for t in wire
    )


def usage_to_wire(usage: Usage) -> inference.Usage:
    return inference.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        loaded_tokens=usage.loaded_tokens,
        computed_tokens=usage.computed_tokens,
        migrations=usage.migrations,
        recomputed_tokens=usage.recomputed_tokens,
    )


def timing_to_wire(timing: Timing) -> inference.RequestTiming:
    parts = timing.ttft
    wire = inference.RequestTiming(
        ttft_ns=parts.total_ns,
        admission_ns=parts.admission_ns,
        queue_ns=parts.queue_ns,
        reservation_ns=parts.reservation_ns,
        prefill_ns=parts.prefill_ns,
        delivery_ns=parts.delivery_ns,
        e2e_ns=timing.e2e_ns,
    )
    if timing.second is not None:
        wire.second_token_ns = timing.second.total_ns
        wire.exposed_transfer_ns = timing.second.exposed_transfer_ns
        wire.import_ns = timing.second.import_ns
        wire.decode_queue_ns = timing.second.decode_queue_ns
        wire.first_step_ns = timing.second.first_step_ns
        wire.migration_ns = timing.second.migration_ns
    return wire
