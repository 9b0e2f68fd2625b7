"""The ways that KV can leave and reach a rank hosted here: what `kv.transports` asks for, as far as
this host has it.

A deployment that names its transports gets all of them on every host, or an error at start that
says which one is not there and why. One that names none gets shared memory, where there is
some, and gRPC.
"""

from __future__ import annotations

import logging
import mmap

from eastwest.clock import Clock
from eastwest.config import KVConfig
from eastwest.errors import ConfigError, TransferFailed
from eastwest.messages import Transport
from eastwest.ports import Buffer
from kv_transfer.grpc_delivery import GrpcTransport
from kv_transfer.host_identity import host_identity
from kv_transfer.negotiate import allowed_transports
from kv_transfer.nixl_agent import nixl_problem
from kv_transfer.nixl_delivery import Nixl
from kv_transfer.nixl_pool import NixlPool
from kv_transfer.shared_memory import SharedMemory, SharedPool
from kv_transfer.transport import Target, TransportProvider
from runtime.rank import Ways

log = logging.getLogger(__name__)


class HostWays:
    """For one rank. The engine makes its paged KV by `allocate`, then `ways` says how it is
    reached; both once.

    Raises `ConfigError`, naming the transport and the reason, where a named one cannot be had.
    """

    def __init__(self, config: KVConfig, clock: Clock) -> None:
        self._named = config.transports is not None
        self._silence_s = config.lease_s
        self._clock = clock
        self._buffer: Buffer | None = None
        self._shared: SharedPool | None = None
        self._transports = [t for t in allowed_transports(config) if self._possible(t, _problem(t))]

    def allocate(self, size: int) -> Buffer:
        """Host memory, zeros at first. May be called in a thread."""
        if Transport.SHARED_MEMORY in self._transports:
            self._shared = SharedPool(size)
            self._buffer = self._shared.buffer
        else:
            self._buffer = memoryview(mmap.mmap(-1, size))
        return self._buffer

    def ways(self) -> Ways:
        """What there is. KV on a device, for which nothing was allocated, moves by gRPC alone."""
        providers: dict[Transport, TransportProvider] = {}
        targets: dict[Transport, Target] = {}
        try:
            for transport in self._transports:
                self._add(transport, providers, targets)
        except ConfigError:
            Ways(providers, targets).close()
            raise
        return Ways(providers, targets, host_identity() if self._shared else "")

    def _add(
        self,
        transport: Transport,
        providers: dict[Transport, TransportProvider],
        targets: dict[Transport, Target],
    ) -> None:
        if transport is Transport.GRPC:
            providers[transport] = GrpcTransport()
        elif self._buffer is None:
            self._possible(transport, "KV is on a device")
        elif transport is Transport.SHARED_MEMORY:
            assert self._shared is not None
            providers[transport], targets[transport] = SharedMemory(), self._shared
        else:
            try:
                provider = Nixl(self._clock)
                target = NixlPool(self._buffer, self._clock, silence_s=self._silence_s)
                providers[transport], targets[transport] = provider, target
            except TransferFailed as error:
                self._possible(transport, error.message)

    def _possible(self, transport: Transport, problem: str) -> bool:
        """Whether there is no problem; raises it where the transport was named."""
        if problem and self._named:
            raise ConfigError(
                f"kv.transports names {transport}, which this host cannot do: {problem}; allowed: "
                f"what every host of a deployment has"
            )
        if problem:
            log.info("KV does not move by %s here: %s", transport, problem)
        return not problem


def _problem(transport: Transport) -> str:
    """Why this host cannot do it; "" where it can, as far as can be told beforehand."""
    match transport:
        case Transport.SHARED_MEMORY if not host_identity():
            return "it has no memory that processes can share, or does not tell with whom"
        case Transport.NIXL:
            return nixl_problem()
    return ""
