"""What two workers must have in common for KV to move between them, judged at reservation.

Both sides are described alike, by the `KvSource` that `WorkerInfo.source` gives.
"""

from __future__ import annotations

from collections.abc import Sequence

from eastwest.config import KVConfig
from eastwest.errors import ConfigError, Incompatible
from eastwest.messages import KvSource, Transport
from kv_transfer.convert import check_convertible
from kv_transfer.plan import reshard


def check_source(source: KvSource, own: KvSource) -> None:
    """Raise `Incompatible` unless `source` can fill a reservation of `own`; names both sides."""
    here, there = f"at {own.worker_id}", f"at {source.worker_id}"
    if source.protocol_version != own.protocol_version:
        raise Incompatible(
            f"protocol version is {source.protocol_version} {there} and {own.protocol_version} "
            f"{here}; allowed: equal ones"
        )
    if source.fingerprint != own.fingerprint:
        raise Incompatible(
            f"model fingerprint is {source.fingerprint} {there} and {own.fingerprint} {here}; "
            f"allowed: equal ones"
        )
    check_convertible(source.kv, own.kv, there, here)
    for side, where in ((source, there), (own, here)):
        if side.block_tokens < 1:
            raise Incompatible(f"a block has {side.block_tokens} tokens {where}; allowed: 1 and up")
    try:
        reshard(source.layout, own.layout, own.kv)
    except ConfigError as error:
        raise Incompatible(
            f"layouts {source.layout} {there} and {own.layout} {here} cannot be matched: {error}"
        ) from error


def allowed_transports(config: KVConfig) -> tuple[Transport, ...]:
    """The ways that a deployment lets KV move, best first. NIXL only where it is named: over plain
    TCP it is slower than gRPC, and its fence is weaker (ADR 7)."""
    if config.transports is None:
        return (Transport.SHARED_MEMORY, Transport.GRPC)
    return tuple(Transport(name) for name in config.transports)


def choose_transport(source: KvSource, own: KvSource, allowed: Sequence[Transport]) -> Transport:
    """The first of `allowed` that both sides have. Raises `Incompatible` where there is none."""
    # Memory is shared on one host only, and only where both know which one that is.
    together = source.host == own.host != ""
    for transport in allowed:
        both = transport in source.transports and transport in own.transports
        if both and (together or transport is not Transport.SHARED_MEMORY):
            return transport
    raise Incompatible(
        f"{source.worker_id} on host {source.host!r} sends KV by {_names(source.transports)}, "
        f"{own.worker_id} on host {own.host!r} takes it by {_names(own.transports)}; allowed: one "
        f"of {_names(allowed)} that both have"
    )


def _names(transports: Sequence[Transport]) -> str:
    return ", ".join(transports) or "nothing"
