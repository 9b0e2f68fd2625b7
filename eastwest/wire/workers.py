"""What a worker is, and what it promises, on the wire."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TypeVar

from eastwest import messages as m
from eastwest.errors import InvalidArgument
from eastwest.layout import (
    DTYPE_BYTES,
    RANKS_MAX,
    TOKEN_BYTES_MAX,
    KVSpec,
    ParallelLayout,
)
from eastwest.types import Role
from eastwest.v1 import worker_pb2 as worker

EnumT = TypeVar("EnumT", bound=enum.StrEnum)


def enum_from_wire(kind: type[EnumT], value: str, what: str) -> EnumT:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(kind)
        raise InvalidArgument(f"{what} is {value!r}; allowed: {allowed}") from None


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
    spec = KVSpec(wire.num_layers, wire.num_kv_heads, wire.key_dim, wire.value_dim, wire.dtype)
    if spec.bytes_per_token > TOKEN_BYTES_MAX:
        raise InvalidArgument(
            f"the KV of a token has {spec.bytes_per_token} bytes; allowed: up to {TOKEN_BYTES_MAX}"
        )
    return spec


def layout_to_wire(layout: ParallelLayout) -> worker.Layout:
    return worker.Layout(tp=layout.tp, pp=layout.pp, ep=layout.ep, dp=layout.dp)


def layout_from_wire(wire: worker.Layout) -> ParallelLayout:
    if min(wire.tp, wire.pp, wire.ep, wire.dp) < 1:
        raise InvalidArgument("a layout has a size below 1; allowed: tp, pp, ep, dp from 1")
    layout = ParallelLayout(wire.tp, wire.pp, wire.ep, wire.dp)
    if max(layout.world_size, layout.ep) > RANKS_MAX:
        raise InvalidArgument(
            f"a layout has {layout.world_size} ranks, ep {layout.ep}; allowed: up to {RANKS_MAX}"
        )
    return layout


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
    return [worker.RankEndpoint(rank=e.rank, address=e.address, memory=e.memory) for e in endpoints]


def endpoints_from_wire(wire: Iterable[worker.RankEndpoint]) -> tuple[m.RankEndpoint, ...]:
    return tuple(m.RankEndpoint(e.rank, e.address, e.memory) for e in wire)


def transport_from_wire(value: str) -> m.Transport:
    return enum_from_wire(m.Transport, value, "transport")


def _transports(wire: Iterable[str]) -> tuple[m.Transport, ...]:
    return tuple(transport_from_wire(value) for value in wire)


def source_to_wire(source: m.KvSource) -> worker.KvSource:
    return worker.KvSource(
        worker_id=source.worker_id,
        epoch=source.epoch,
        fingerprint=source.fingerprint,
        layout=layout_to_wire(source.layout),
        kv=kv_spec_to_wire(source.kv),
        block_tokens=source.block_tokens,
        host=source.host,
        transports=source.transports,
        protocol_version=source.protocol_version,
        address=source.address,
    )


def source_from_wire(wire: worker.KvSource) -> m.KvSource:
    return m.KvSource(
        wire.worker_id,
        wire.epoch,
        wire.fingerprint,
        layout_from_wire(wire.layout),
        kv_spec_from_wire(wire.kv),
        wire.block_tokens,
        wire.host,
        _transports(wire.transports),
        wire.protocol_version,
        wire.address,
    )


def welcome_to_wire(info: m.WorkerInfo) -> worker.Welcome:
    return worker.Welcome(
        worker_id=info.worker_id,
        epoch=info.epoch,
        role=info.role.value,
        address=info.address,
        model=model_to_wire(info.model),
        layout=layout_to_wire(info.layout),
        block_tokens=info.block_tokens,
        num_blocks=info.num_blocks,
        running_max=info.running_max,
        step_tokens=info.step_tokens,
        host=info.host,
        transports=info.transports,
        protocol_version=info.protocol_version,
        draining_s=info.draining_s,
    )


def welcome_from_wire(wire: worker.Welcome) -> m.WorkerInfo:
    return m.WorkerInfo(
        worker_id=wire.worker_id,
        epoch=wire.epoch,
        role=enum_from_wire(Role, wire.role, "role"),
        address=wire.address,
        model=model_from_wire(wire.model),
        layout=layout_from_wire(wire.layout),
        block_tokens=wire.block_tokens,
        num_blocks=wire.num_blocks,
        running_max=wire.running_max,
        step_tokens=wire.step_tokens,
        host=wire.host,
        transports=_transports(wire.transports),
        protocol_version=wire.protocol_version,
        draining_s=wire.draining_s if wire.HasField("draining_s") else None,
    )


def ticket_to_wire(ticket: m.Ticket) -> worker.Ticket:
    return worker.Ticket(
        transfer_id=ticket.transfer_id,
        worker_id=ticket.worker_id,
        epoch=ticket.epoch,
        address=ticket.address,
        endpoints=endpoints_to_wire(ticket.endpoints),
        layout=layout_to_wire(ticket.layout),
        kv=kv_spec_to_wire(ticket.kv),
        fingerprint=ticket.fingerprint,
        block_tokens=ticket.block_tokens,
        first_block=ticket.first_block,
        num_blocks=ticket.num_blocks,
        num_tokens=ticket.num_tokens,
        lease_s=ticket.lease_s,
        transport=ticket.transport.value,
        blocks=ticket.blocks,
    )


def ticket_from_wire(wire: worker.Ticket) -> m.Ticket:
    return m.Ticket(
        transfer_id=wire.transfer_id,
        worker_id=wire.worker_id,
        epoch=wire.epoch,
        address=wire.address,
        endpoints=endpoints_from_wire(wire.endpoints),
        layout=layout_from_wire(wire.layout),
        kv=kv_spec_from_wire(wire.kv),
        fingerprint=wire.fingerprint,
        block_tokens=wire.block_tokens,
        first_block=wire.first_block,
        num_blocks=wire.num_blocks,
        num_tokens=wire.num_tokens,
        lease_s=wire.lease_s,
        transport=transport_from_wire(wire.transport),
        blocks=tuple(wire.blocks),
    )
