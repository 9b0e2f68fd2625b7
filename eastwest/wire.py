"""Values to protobuf and back: the only module that knows both.

Each pair is ``x_to_wire`` and ``x_from_wire``; both directions are total on valid values, and
what a peer sends malformed raises `InvalidArgument`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TypeVar

from eastwest import messages as m
from eastwest.errors import ErrorCode, InvalidArgument, Phase
from eastwest.layout import DTYPE_BYTES, KVSpec, ParallelLayout
from eastwest.timing import Timing
from eastwest.types import FinishReason, Role, SampledToken, SamplingParams, TopLogprob, Usage
from eastwest.v1 import inference_pb2 as inference
from eastwest.v1 import worker_pb2 as worker

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


# Sampling and tokens.

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
    return wire


# What a worker is.


def kv_spec_to_wire(spec: KVSpec) -> worker.KvSpec:
    return worker.KvSpec(
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        key_dim=spec.key_dim,
        value_dim=spec.value_dim,
        dtype=spec.dtype,
    )


def kv_spec_from_wire(wire: worker.KvSpec) -> KVSpec:
    if wire.dtype not in DTYPE_BYTES:
        raise InvalidArgument(f"KV dtype is {wire.dtype!r}; allowed: {', '.join(DTYPE_BYTES)}")
    if min(wire.num_layers, wire.num_kv_heads, wire.key_dim) < 1 or wire.value_dim < 0:
        raise InvalidArgument("KV spec has no layers, heads or dims; allowed: at least 1 of each")
    return KVSpec(wire.num_layers, wire.num_kv_heads, wire.key_dim, wire.value_dim, wire.dtype)


def layout_to_wire(layout: ParallelLayout) -> worker.Layout:
    return worker.Layout(tp=layout.tp, pp=layout.pp, ep=layout.ep, dp=layout.dp)


def layout_from_wire(wire: worker.Layout) -> ParallelLayout:
    if min(wire.tp, wire.pp, wire.ep, wire.dp) < 1:
        raise InvalidArgument("a layout has a size below 1; allowed: tp, pp, ep, dp from 1")
    return ParallelLayout(wire.tp, wire.pp, wire.ep, wire.dp)


def model_to_wire(model: m.ModelInfo) -> worker.Model:
    return worker.Model(
        name=model.name,
        fingerprint=model.fingerprint,
        architecture=model.architecture,
        dtype=model.dtype,
        context_tokens=model.context_tokens,
        vocab_size=model.vocab_size,
        eos_ids=model.eos_ids,
        kv=kv_spec_to_wire(model.kv),
    )


def model_from_wire(wire: worker.Model) -> m.ModelInfo:
    return m.ModelInfo(
        wire.name,
        wire.fingerprint,
        wire.architecture,
        wire.dtype,
        wire.context_tokens,
        wire.vocab_size,
        tuple(wire.eos_ids),
        kv_spec_from_wire(wire.kv),
    )


def endpoints_to_wire(endpoints: Iterable[m.RankEndpoint]) -> list[worker.RankEndpoint]:
    return [worker.RankEndpoint(rank=e.rank, address=e.address) for e in endpoints]


def endpoints_from_wire(wire: Iterable[worker.RankEndpoint]) -> tuple[m.RankEndpoint, ...]:
    return tuple(m.RankEndpoint(e.rank, e.address) for e in wire)


def welcome_to_wire(info: m.WorkerInfo) -> worker.Welcome:
    return worker.Welcome(
        worker_id=info.worker_id,
        epoch=info.epoch,
        role=info.role.value,
        address=info.address,
        model=model_to_wire(info.model),
        layout=layout_to_wire(info.layout),
        endpoints=endpoints_to_wire(info.endpoints),
        block_tokens=info.block_tokens,
        num_blocks=info.num_blocks,
        running_max=info.running_max,
        protocol_version=info.protocol_version,
    )


def welcome_from_wire(wire: worker.Welcome) -> m.WorkerInfo:
    return m.WorkerInfo(
        worker_id=wire.worker_id,
        epoch=wire.epoch,
        role=_enum(Role, wire.role, "role"),
        address=wire.address,
        model=model_from_wire(wire.model),
        layout=layout_from_wire(wire.layout),
        endpoints=endpoints_from_wire(wire.endpoints),
        block_tokens=wire.block_tokens,
        num_blocks=wire.num_blocks,
        running_max=wire.running_max,
        protocol_version=wire.protocol_version,
    )


def ticket_to_wire(ticket: m.Ticket) -> worker.Ticket:
    return worker.Ticket(
        transfer_id=ticket.transfer_id,
        worker_id=ticket.worker_id,
        epoch=ticket.epoch,
        endpoints=endpoints_to_wire(ticket.endpoints),
        layout=layout_to_wire(ticket.layout),
        kv=kv_spec_to_wire(ticket.kv),
        fingerprint=ticket.fingerprint,
        block_tokens=ticket.block_tokens,
        first_block=ticket.first_block,
        num_blocks=ticket.num_blocks,
        lease_s=ticket.lease_s,
    )


def ticket_from_wire(wire: worker.Ticket) -> m.Ticket:
    return m.Ticket(
        transfer_id=wire.transfer_id,
        worker_id=wire.worker_id,
        epoch=wire.epoch,
        endpoints=endpoints_from_wire(wire.endpoints),
        layout=layout_from_wire(wire.layout),
        kv=kv_spec_from_wire(wire.kv),
        fingerprint=wire.fingerprint,
        block_tokens=wire.block_tokens,
        first_block=wire.first_block,
        num_blocks=wire.num_blocks,
        lease_s=wire.lease_s,
    )


# Commands.


def command_to_wire(command: m.Command) -> worker.Command:
    match command:
        case m.Reserve():
            return worker.Command(
                reserve=worker.Reserve(
                    request_id=command.request_id,
                    salt=command.salt,
                    session_id=command.session_id,
                    prompt=command.prompt,
                    sampling=sampling_to_wire(command.sampling),
                    max_tokens=command.max_tokens,
                    timeout_s=command.timeout_s,
                )
            )
        case m.Prefill():
            return worker.Command(
                prefill=worker.Prefill(
                    request_id=command.request_id,
                    salt=command.salt,
                    prompt=command.prompt,
                    sampling=sampling_to_wire(command.sampling),
                    max_tokens=command.max_tokens,
                    ticket=ticket_to_wire(command.ticket),
                    timeout_s=command.timeout_s,
                )
            )
        case m.Abort():
            return worker.Command(abort=worker.AbortWork(request_id=command.request_id))
        case m.Heartbeat():
            return worker.Command(heartbeat=worker.Heartbeat())


def command_from_wire(wire: worker.Command) -> m.Command:
    match wire.WhichOneof("command"):
        case "reserve":
            reserve = wire.reserve
            return m.Reserve(
                reserve.request_id,
                reserve.salt,
                reserve.session_id,
                tuple(reserve.prompt),
                sampling_from_wire(reserve.sampling),
                reserve.max_tokens,
                reserve.timeout_s,
            )
        case "prefill":
            prefill = wire.prefill
            return m.Prefill(
                prefill.request_id,
                prefill.salt,
                tuple(prefill.prompt),
                sampling_from_wire(prefill.sampling),
                prefill.max_tokens,
                ticket_from_wire(prefill.ticket),
                prefill.timeout_s,
            )
        case "abort":
            return m.Abort(wire.abort.request_id)
        case "heartbeat":
            return m.Heartbeat()
        case _:
            raise InvalidArgument("a command is empty; allowed: reserve, prefill, abort, heartbeat")


# Events.


def _output_to_wire(output: m.SequenceOutput) -> worker.SequenceOutput:
    wire = worker.SequenceOutput(
        request_id=output.request_id,
        tokens=[token_to_wire(t) for t in output.tokens],
        finish=finish_to_wire(output.finish),
    )
    if (first := output.first_step) is not None:
        wire.first_step.import_ns = first.import_ns
        wire.first_step.decode_queue_ns = first.decode_queue_ns
        wire.first_step.first_step_ns = first.first_step_ns
        wire.first_step.transfer_ns = first.transfer_ns
        wire.first_step.transfer_bytes = first.transfer_bytes
    return wire


def _output_from_wire(wire: worker.SequenceOutput) -> m.SequenceOutput:
    first = None
    if wire.HasField("first_step"):
        step = wire.first_step
        first = m.FirstStep(
            step.import_ns,
            step.decode_queue_ns,
            step.first_step_ns,
            step.transfer_ns,
            step.transfer_bytes,
        )
    return m.SequenceOutput(
        wire.request_id,
        tuple(token_from_wire(t) for t in wire.tokens),
        finish_from_wire(wire.finish),
        first,
    )


_LOAD_FIELDS = (
    "free_blocks", "cached_blocks", "num_blocks", "running", "waiting", "waiting_tokens",
    "leaked_blocks", "spilled_blocks", "sessions_inactive", "sessions_spilled", "transfer_bytes",
    "store_available",
)  # fmt: skip


def event_to_wire(event: m.Event) -> worker.Event:
    match event:
        case m.Reserved():
            return worker.Event(
                reserved=worker.Reserved(
                    request_id=event.request_id,
                    ticket=ticket_to_wire(event.ticket),
                    cached_tokens=event.cached_tokens,
                    loaded_tokens=event.loaded_tokens,
                )
            )
        case m.Prefilled():
            return worker.Event(
                prefilled=worker.Prefilled(
                    request_id=event.request_id,
                    token=token_to_wire(event.token),
                    finish=finish_to_wire(event.finish),
                    queue_ns=event.queue_ns,
                    prefill_ns=event.prefill_ns,
                    computed_tokens=event.computed_tokens,
                    loaded_tokens=event.loaded_tokens,
                )
            )
        case m.Stepped():
            outputs = [_output_to_wire(o) for o in event.outputs]
            return worker.Event(stepped=worker.Stepped(outputs=outputs))
        case m.Failed():
            return worker.Event(
                failed=worker.Failed(
                    request_id=event.request_id,
                    code=event.code.value,
                    message=event.message,
                    phase=event.phase.value,
                )
            )
        case m.Load():
            fields = {name: getattr(event, name) for name in _LOAD_FIELDS}
            return worker.Event(load=worker.Load(**fields))


def event_from_wire(wire: worker.Event) -> m.Event:
    match wire.WhichOneof("event"):
        case "reserved":
            reserved = wire.reserved
            return m.Reserved(
                reserved.request_id,
                ticket_from_wire(reserved.ticket),
                reserved.cached_tokens,
                reserved.loaded_tokens,
            )
        case "prefilled":
            prefilled = wire.prefilled
            return m.Prefilled(
                prefilled.request_id,
                token_from_wire(prefilled.token),
                finish_from_wire(prefilled.finish),
                prefilled.queue_ns,
                prefilled.prefill_ns,
                prefilled.computed_tokens,
                prefilled.loaded_tokens,
            )
        case "stepped":
            return m.Stepped(tuple(_output_from_wire(o) for o in wire.stepped.outputs))
        case "failed":
            failed = wire.failed
            return m.Failed(
                failed.request_id,
                _enum(ErrorCode, failed.code, "error code"),
                failed.message,
                _enum(Phase, failed.phase, "phase"),
            )
        case "load":
            return m.Load(*(getattr(wire.load, name) for name in _LOAD_FIELDS))
        case _:
            raise InvalidArgument(
                "an event is empty; allowed: reserved, prefilled, stepped, failed, load"
            )


EnumT = TypeVar("EnumT", bound=enum.StrEnum)


def _enum(kind: type[EnumT], value: str, what: str) -> EnumT:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(kind)
        raise InvalidArgument(f"{what} is {value!r}; allowed: {allowed}") from None
