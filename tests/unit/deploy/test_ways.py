"""The ways that a host offers: what was named or an error, else what there is."""

from __future__ import annotations

import pytest

from deploy.ways import HostWays
from eastwest.clock import SystemClock
from eastwest.config import KVConfig
from eastwest.errors import ConfigError, TransferFailed
from eastwest.messages import Transport
from kv_transfer.nixl_agent import nixl_problem
from kv_transfer.shared_memory import MappedPool

SHARED, NIXL, GRPC = Transport.SHARED_MEMORY, Transport.NIXL, Transport.GRPC
NIXL_PROBLEM = nixl_problem()
SIZE = 1 << 16
with_nixl = pytest.mark.skipif(bool(NIXL_PROBLEM), reason=NIXL_PROBLEM)
without_nixl = pytest.mark.skipif(not NIXL_PROBLEM, reason="nixl works here")


def named(*transports: Transport) -> HostWays:
    return HostWays(KVConfig.model_validate({"transports": transports}), SystemClock())


async def test_without_a_wish_there_is_what_the_host_has_but_nixl() -> None:
    host = HostWays(KVConfig(), SystemClock())
    assert len(memoryview(host.allocate(SIZE))) == SIZE
    ways = host.ways()
    assert ways.transports == (SHARED, GRPC)
    assert ways.memory.keys() == {SHARED}
    assert ways.host
    ways.close()


async def test_what_is_closed_cannot_be_found_any_more() -> None:
    host = named(SHARED)
    host.allocate(SIZE)
    ways = host.ways()
    MappedPool(ways.memory[SHARED]).close()
    for _ in range(2):
        ways.close()
    with pytest.raises(TransferFailed):
        MappedPool(ways.memory[SHARED])


@pytest.mark.parametrize("transports", [(GRPC,), (GRPC, SHARED), (SHARED,)])
def test_what_is_named_is_there_in_that_order(transports: tuple[Transport, ...]) -> None:
    host = named(*transports)
    host.allocate(SIZE)
    ways = host.ways()
    assert ways.transports == transports
    assert bool(ways.host) == (SHARED in transports)


@without_nixl
def test_nixl_that_is_named_and_absent_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"kv.transports names nixl, .* nixl is not installed"):
        named(NIXL, GRPC)


@with_nixl
@pytest.mark.parametrize("transports", [(NIXL,), (NIXL, SHARED, GRPC)])
async def test_one_memory_is_reached_in_several_ways(transports: tuple[Transport, ...]) -> None:
    host = named(*transports)
    host.allocate(SIZE)
    ways = host.ways()
    assert ways.transports == transports
    assert ways.memory[NIXL].startswith("nixl1:")
    assert ways.memory.keys() == set(transports) - {GRPC}
    ways.close()


def test_kv_on_a_device_moves_by_grpc() -> None:
    assert HostWays(KVConfig(), SystemClock()).ways().transports == (GRPC,)
    with pytest.raises(ConfigError, match=r"names shared_memory, .* KV is on a device"):
        named(GRPC, SHARED).ways()
