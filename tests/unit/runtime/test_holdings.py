"""Pool and ledger change together, and the auditor agrees."""

from __future__ import annotations

import asyncio

import pytest

from eastwest.blocks import HASH_BYTES, BlockHash
from eastwest.errors import Overloaded
from engine.block_groups import BlockGroups
from kv_transfer.ledger import Owner, OwnerKind
from runtime.holdings import Holdings

A, B = (Owner(OwnerKind.SEQUENCE, name) for name in "ab")
HASHES = [BlockHash(bytes([i]) * HASH_BYTES) for i in range(4)]


def take(holdings: Holdings, owner: Owner, total: int, hashes: int = 0) -> tuple[int, ...]:
    taken = holdings.take(owner, HASHES[:hashes], total, router_id="r", lease_until_ns=None)
    return taken.blocks


async def test_taking_too_much_takes_nothing() -> None:
    holdings = Holdings(BlockGroups(4))
    blocks = take(holdings, A, 2)
    holdings.publish(blocks, HASHES[:2])
    with pytest.raises(Overloaded):
        take(holdings, B, 5, hashes=2)
    assert holdings.audit([A]).findings == ()
    holdings.release(A)
    assert holdings.pool.cached_blocks == 2
    assert holdings.audit([]).findings == ()


async def test_a_shared_prefix_has_several_owners_and_ends_with_the_last() -> None:
    holdings = Holdings(BlockGroups(8))
    first = take(holdings, A, 3)
    holdings.publish(first[:2], HASHES[:2])
    second = take(holdings, B, 3, hashes=2)
    assert second[:2] == first[:2]
    holdings.release(A)
    assert holdings.audit([B]).findings == ()
    assert holdings.audit([B]).held_blocks == 3
    holdings.release(B)
    assert holdings.audit([]).held_blocks == 0


async def test_passing_on_keeps_the_front_and_frees_the_rest() -> None:
    holdings = Holdings(BlockGroups(8))
    blocks = take(holdings, A, 5)
    assert holdings.pass_on(A, B, keep=2) == blocks[:2]
    audit = holdings.audit([B])
    assert (audit.held_blocks, audit.free_blocks) == (2, 6)
    assert audit.findings == ()


async def test_an_owner_that_nobody_knows_is_a_leak() -> None:
    holdings = Holdings(BlockGroups(8))
    take(holdings, A, 5)
    audit = holdings.audit([])
    assert audit.leaked_blocks == 5
    assert "not alive" in audit.findings[0]
    holdings.retire(A)
    assert holdings.audit([]).findings == ()


async def test_waiting_for_room_ends_with_a_release() -> None:
    holdings = Holdings(BlockGroups(2))
    take(holdings, A, 2)
    waiting = [asyncio.ensure_future(holdings.wait_change()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(w.done() for w in waiting)
    holdings.release(A)
    await asyncio.gather(*waiting)
