"""The ledger against a plain model, through any course of owners.

1. Its counts are those of the model after every step.
2. A hand-over changes the owner and nothing else; closing gives back what was opened.
3. Leases only grow, and an owner without one never expires.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kv_transfer.ledger import Ledger, Owner, OwnerKind

owners = st.builds(Owner, st.sampled_from(OwnerKind), st.sampled_from("abcd"))
leases = st.none() | st.integers(0, 100)
routers = st.sampled_from(("", "r1", "r2"))


@dataclass
class Held:
    blocks: tuple[int, ...]
    router_id: str
    until: int | None


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.model: dict[Owner, Held] = {}

    @rule(
        owner=owners,
        blocks=st.lists(st.integers(0, 9), unique=True),
        router_id=routers,
        lease=leases,
    )
    def open(self, owner: Owner, blocks: list[int], router_id: str, lease: int | None) -> None:
        if owner in self.model:
            with pytest.raises(AssertionError):
                self.ledger.open(owner, blocks, lease_until_ns=lease)
            return
        self.ledger.open(owner, blocks, router_id=router_id, lease_until_ns=lease)
        self.model[owner] = Held(tuple(blocks), router_id, lease)

    @rule(owner=owners, until=st.integers(0, 100))
    def renew(self, owner: Owner, until: int) -> None:
        if owner not in self.model:
            with pytest.raises(AssertionError):
                self.ledger.renew(owner, until)
            return
        self.ledger.renew(owner, until)
        self.lengthen(owner, until)

    @rule(router_id=routers, until=st.integers(0, 100))
    def renew_router(self, router_id: str, until: int) -> None:
        self.ledger.renew_router(router_id, until)
        for owner, held in self.model.items():
            if held.router_id == router_id:
                self.lengthen(owner, until)

    def lengthen(self, owner: Owner, until: int) -> None:
        held = self.model[owner]
        if held.until is not None:
            held.until = max(held.until, until)

    @rule(owner=owners, new_owner=owners, lease=leases)
    def rename(self, owner: Owner, new_owner: Owner, lease: int | None) -> None:
        if owner not in self.model or new_owner in self.model:
            with pytest.raises(AssertionError):
                self.ledger.rename(owner, new_owner, lease_until_ns=lease)
            return
        self.ledger.rename(owner, new_owner, lease_until_ns=lease)
        held = self.model.pop(owner)
        self.model[new_owner] = Held(held.blocks, held.router_id, lease)

    @rule(owner=owners)
    def close(self, owner: Owner) -> None:
        if owner not in self.model:
            with pytest.raises(AssertionError):
                self.ledger.close(owner)
            return
        assert self.ledger.close(owner) == self.model.pop(owner).blocks

    @precondition(lambda self: self.model)
    @rule(now=st.integers(0, 100))
    def expire(self, now: int) -> None:
        due = {o for o, held in self.model.items() if held.until is not None and held.until <= now}
        assert set(self.ledger.expired(now)) == due

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.ledger.check_integrity()
        counts = Counter(block for held in self.model.values() for block in held.blocks)
        assert self.ledger.holders() == counts
        assert set(self.ledger.owners()) == set(self.model)
        for owner, held in self.model.items():
            assert owner in self.ledger
            assert self.ledger.blocks(owner) == held.blocks
        for router_id in ("r1", "r2"):
            owned = {o for o, held in self.model.items() if held.router_id == router_id}
            assert set(self.ledger.owned_by(router_id)) == owned


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(deadline=None, max_examples=50, stateful_step_count=30)
