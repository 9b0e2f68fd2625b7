"""Commands and events on the wire."""

from __future__ import annotations

from eastwest import messages as m
from eastwest.errors import ErrorCode, InvalidArgument, Phase
from eastwest.kv_events import KvEvents
from eastwest.v1 import worker_pb2 as worker
from eastwest.wire.kv_events import kv_events_from_wire, kv_events_to_wire
from eastwest.wire.steps import stepped_from_wire, stepped_to_wire
from eastwest.wire.values import (
    NUMBER_MAX,
    TOKENS_MAX,
    check_numbers,
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
                    leave_stored=command.leave_stored,
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
                    meet_tokens=command.meet_tokens,
                    lender=None if command.lender is None else source_to_wire(command.lender),
                )
            )
        case m.Abort():
            return worker.Command(abort=worker.AbortWork(request_id=command.request_id))
        case m.Heartbeat():
            return worker.Command(heartbeat=worker.Heartbeat())
        case m.ResyncKv():
            return worker.Command(resync_kv=worker.ResyncKv())
        case m.Drain():
            return worker.Command(drain=worker.Drain(timeout_s=command.timeout_s))
        case m.Undrain():
            return worker.Command(undrain=worker.Undrain())
        case m.Dismiss():
            return worker.Command(dismiss=worker.Dismiss())
        case m.StepBudget():
            budget = worker.StepBudget(prompt_tokens=command.prompt_tokens)
            return worker.Command(step_budget=budget)
        case m.Erase():
            return worker.Command(
                erase=worker.Erase(
                    salt=command.salt,
                    session_id=command.session_id,
                    tokens=command.tokens,
                    keep_tokens=command.keep_tokens,
                )
            )


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
                reserve.leave_stored,
            )
        case "prefill":
            prefill = wire.prefill
            check_numbers("prefill", TOKENS_MAX, prefill.meet_tokens)
            return m.Prefill(
                prefill.request_id,
                prefill.salt,
                tuple(prefill.prompt),
                sampling_from_wire(prefill.sampling),
                prefill.max_tokens,
                ticket_from_wire(prefill.ticket),
                prefill.timeout_s,
                tuple(prefill.output),
                prefill.meet_tokens,
                source_from_wire(prefill.lender) if prefill.HasField("lender") else None,
            )
        case "abort":
            return m.Abort(wire.abort.request_id)
        case "heartbeat":
            return m.Heartbeat()
        case "resync_kv":
            return m.ResyncKv()
        case "drain":
            return m.Drain(wire.drain.timeout_s)
        case "undrain":
            return m.Undrain()
        case "dismiss":
            return m.Dismiss()
        case "step_budget":
            tokens = wire.step_budget.prompt_tokens
            if not 1 <= tokens <= TOKENS_MAX:
                raise InvalidArgument(
                    f"a step budget is {tokens} prompt tokens; allowed: 1 to {TOKENS_MAX}"
                )
            return m.StepBudget(tokens)
        case "erase":
            erase = wire.erase
            check_numbers("erase", TOKENS_MAX, erase.keep_tokens)
            return m.Erase(erase.salt, erase.session_id, tuple(erase.tokens), erase.keep_tokens)
        case _:
            raise InvalidArgument(
                "a command is empty; allowed: reserve, prefill, abort, heartbeat, resync_kv, "
                "drain, undrain, dismiss, step_budget, erase"
            )


# Events.

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
                    load_ns=event.load_ns,
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
                    load_ns=event.load_ns,
                )
            )
        case m.Stepped():
            return worker.Event(stepped=stepped_to_wire(event))
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
            load = worker.Load(
                links=links,
                expert_tokens=event.expert_tokens,
                draining_s=event.draining_s,
                **fields,
            )
            return worker.Event(load=load)
        case KvEvents():
            return worker.Event(kv=kv_events_to_wire(event))
        case m.Drained():
            return worker.Event(
                drained=worker.Drained(
                    sessions_stored=event.sessions_stored, sessions_dropped=event.sessions_dropped
                )
            )


def event_from_wire(wire: worker.Event) -> m.Event:
    match wire.WhichOneof("event"):
        case "reserved":
            reserved = wire.reserved
            check_numbers("reserved", TOKENS_MAX, reserved.cached_tokens, reserved.loaded_tokens)
            check_numbers("reserved", NUMBER_MAX, reserved.load_ns)
            return m.Reserved(
                reserved.request_id,
                ticket_from_wire(reserved.ticket),
                reserved.cached_tokens,
                reserved.loaded_tokens,
                reserved.load_ns,
            )
        case "prefilled":
            prefilled = wire.prefilled
            check_numbers(
                "prefilled", TOKENS_MAX, prefilled.computed_tokens, prefilled.loaded_tokens
            )
            times = prefilled.queue_ns, prefilled.prefill_ns, prefilled.load_ns
            check_numbers("prefilled", NUMBER_MAX, *times)
            return m.Prefilled(
                prefilled.request_id,
                token_from_wire(prefilled.token),
                finish_from_wire(prefilled.finish),
                prefilled.queue_ns,
                prefilled.prefill_ns,
                prefilled.computed_tokens,
                prefilled.loaded_tokens,
                prefilled.load_ns,
            )
        case "stepped":
            return stepped_from_wire(wire.stepped)
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
            check_numbers("load", NUMBER_MAX, *fields.values(), *load.expert_tokens)
            return m.Load(
                **fields,
                links=tuple(
                    m.KvLink(k.source, transport_from_wire(k.transport), k.transfers, k.bytes)
                    for k in load.links
                ),
                expert_tokens=tuple(load.expert_tokens),
                draining_s=load.draining_s if load.HasField("draining_s") else None,
            )
        case "kv":
            return kv_events_from_wire(wire.kv)
        case "drained":
            return m.Drained(wire.drained.sessions_stored, wire.drained.sessions_dropped)
        case _:
            raise InvalidArgument(
                "an event is empty; allowed: reserved, prefilled, stepped, failed, load, kv, "
                "drained"
            )
