"""Commands and events on the wire."""

from __future__ import annotations

from eastwest import messages as m
from eastwest.errors import ErrorCode, InvalidArgument, Phase
from eastwest.v1 import worker_pb2 as worker
from eastwest.wire.kv_events import kv_events_from_wire, kv_events_to_wire
from eastwest.wire.values import (
    finish_from_wire,
    finish_to_wire,
    sampling_from_wire,
    sampling_to_wire,
    token_from_wire,
    token_to_wire,
)
from eastwest.wire.workers import (
    enum_from_wire,
    source_from_wire,
    source_to_wire,
    ticket_from_wire,
    ticket_to_wire,
    transport_from_wire,
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
                    source=source_to_wire(command.source),
                    timeout_s=command.timeout_s,
                    output=command.output,
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
                    output=command.output,
                )
            )
        case m.Abort():
            return worker.Command(abort=worker.AbortWork(request_id=command.request_id))
        case m.Heartbeat():
            return worker.Command(heartbeat=worker.Heartbeat())
        case m.ResyncKv():
            return worker.Command(resync_kv=worker.ResyncKv())


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
                source_from_wire(reserve.source),
                reserve.timeout_s,
                tuple(reserve.output),
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
                tuple(prefill.output),
            )
        case "abort":
            return m.Abort(wire.abort.request_id)
        case "heartbeat":
            return m.Heartbeat()
        case "resync_kv":
            return m.ResyncKv()
        case _:
            raise InvalidArgument(
                "a command is empty; allowed: reserve, prefill, abort, heartbeat, resync_kv"
            )


# Events.

# Sums of a few of these are numbers that any message can hold.
_NUMBER_MAX = 1 << 60
_TOKENS_MAX = 1 << 24


def _check(event: str, number_max: int, *numbers: int) -> None:
    """What a worker counts or measures is no negative number, and none without end."""
    for number in numbers:
        if not 0 <= number <= number_max:
            raise InvalidArgument(
                f"a number of {event} is {number}; allowed: from 0 up to {number_max}"
            )


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
        _check(
            "a first step",
            _NUMBER_MAX,
            step.import_ns,
            step.decode_queue_ns,
            step.first_step_ns,
            step.transfer_ns,
            step.transfer_bytes,
        )
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
    "store_available", "kv_sequence",
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
            links = [
                worker.KvLink(
                    source=link.source,
                    transport=link.transport.value,
                    transfers=link.transfers,
                    bytes=link.bytes,
                )
                for link in event.links
            ]
            load = worker.Load(links=links, expert_tokens=event.expert_tokens, **fields)
            return worker.Event(load=load)
        case m.KvEvents():
            return worker.Event(kv=kv_events_to_wire(event))


def event_from_wire(wire: worker.Event) -> m.Event:
    match wire.WhichOneof("event"):
        case "reserved":
            reserved = wire.reserved
            _check("reserved", _TOKENS_MAX, reserved.cached_tokens, reserved.loaded_tokens)
            return m.Reserved(
                reserved.request_id,
                ticket_from_wire(reserved.ticket),
                reserved.cached_tokens,
                reserved.loaded_tokens,
            )
        case "prefilled":
            prefilled = wire.prefilled
            _check("prefilled", _TOKENS_MAX, prefilled.computed_tokens, prefilled.loaded_tokens)
            _check("prefilled", _NUMBER_MAX, prefilled.queue_ns, prefilled.prefill_ns)
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
                enum_from_wire(ErrorCode, failed.code, "error code"),
                failed.message,
                enum_from_wire(Phase, failed.phase, "phase"),
            )
        case "load":
            load = wire.load
            fields = {name: getattr(load, name) for name in _LOAD_FIELDS}
            _check("load", _NUMBER_MAX, *fields.values(), *load.expert_tokens)
            return m.Load(
                **fields,
                links=tuple(
                    m.KvLink(k.source, transport_from_wire(k.transport), k.transfers, k.bytes)
                    for k in load.links
                ),
                expert_tokens=tuple(load.expert_tokens),
            )
        case "kv":
            return kv_events_from_wire(wire.kv)
        case _:
            raise InvalidArgument(
                "an event is empty; allowed: reserved, prefilled, stepped, failed, load, kv"
            )
