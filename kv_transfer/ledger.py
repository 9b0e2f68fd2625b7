"""Who owns which KV blocks, and until when.

Every reference that somebody took in the block pool is written here under its owner. Blocks of a
shared prefix have several owners. An owner's life: `open`, any number of `renew` and `rename`,
`close`. Opening an owner twice and naming an unknown one are programmer errors (assertions).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eastwest.value import value


class OwnerKind(enum.StrEnum):
    """On whose behalf blocks are held."""

    RESERVATION = "reservation"  # a decode worker, before the commit of a transfer
    SEQUENCE = "sequence"  # a sequence that decodes
    PREFILL = "prefill"  # a prompt that is being computed or pushed
    SESSION = "session"  # an inactive session
    LOAN = "loan"  # another worker reads them


@dataclass(frozen=True, slots=True)
class Owner:
    """`id` is a request or session id; the pair is unique within one ledger."""

    kind: OwnerKind
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


@value
class Holding:
    """What one owner holds: blocks in its own order, at most once each.

    router_id: the router on whose behalf, "" for none. lease_until_ns: the holding ends itself
    from this time on; None for no lease.
    """

    blocks: tuple[int, ...]
    router_id: str
    lease_until_ns: int | None

    def expired(self, now_ns: int) -> bool:
        return self.lease_until_ns is not None and self.lease_until_ns <= now_ns


class Ledger:
    """The books of one worker incarnation."""

    def __init__(self) -> None:
        self._holdings: dict[Owner, Holding] = {}
        self._holders: Counter[int] = Counter()
        self._expires_ns: int | None = None  # no lease ends before

    def __contains__(self, owner: Owner) -> bool:
        return owner in self._holdings

    def __getitem__(self, owner: Owner) -> Holding:
        assert owner in self._holdings, f"{owner} holds nothing"
        return self._holdings[owner]

    def open(
        self,
        owner: Owner,
        blocks: Sequence[int],
        *,
        router_id: str = "",
        lease_until_ns: int | None,
    ) -> None:
        """Enter a new owner, who has taken one reference to each of `blocks`."""
        assert owner not in self._holdings, f"{owner} holds blocks already"
        assert len(set(blocks)) == len(blocks), f"{owner} holds a block twice"
        self._holdings[owner] = Holding(tuple(blocks), router_id, lease_until_ns)
        self._holders.update(blocks)
        self._note_lease(lease_until_ns)

    def renew(self, owner: Owner, until_ns: int) -> None:
        """Lengthen the owner's lease, if it has one; never shortens it."""
        holding = self[owner]
        if holding.lease_until_ns is not None and holding.lease_until_ns < until_ns:
            self._holdings[owner] = Holding(holding.blocks, holding.router_id, until_ns)

    def renew_router(self, router_id: str, until_ns: int) -> None:
        """Lengthen the leases of all that the router owns."""
        for owner in self.owned_by(router_id):
            self.renew(owner, until_ns)

    def rename(self, owner: Owner, new_owner: Owner, *, lease_until_ns: int | None) -> None:
        """Hand all that `owner` holds to `new_owner`, under a lease of its own."""
        holding = self[owner]
        assert new_owner not in self._holdings, f"{new_owner} holds blocks already"
        del self._holdings[owner]
        self._holdings[new_owner] = Holding(holding.blocks, holding.router_id, lease_until_ns)
        self._note_lease(lease_until_ns)

    def close(self, owner: Owner) -> tuple[int, ...]:
        """End the owner; the caller gives back one reference to each block returned."""
        blocks = self[owner].blocks
        del self._holdings[owner]
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
        return blocks

    def blocks(self, owner: Owner) -> tuple[int, ...]:
        """What the owner holds, in the order in which it was opened."""
        return self[owner].blocks

    def owners(self) -> list[Owner]:
        """All owners, oldest first."""
        return list(self._holdings)

    def owned_by(self, router_id: str) -> list[Owner]:
        """The owners that act for one router."""
        return [o for o, holding in self._holdings.items() if holding.router_id == router_id]

    def expired(self, now_ns: int) -> list[Owner]:
        """Owners whose lease has ended; the caller closes them."""
        if self._expires_ns is None or now_ns < self._expires_ns:
            return []
        leases = [h.lease_until_ns for h in self._holdings.values() if h.lease_until_ns is not None]
        self._expires_ns = min(leases, default=None)
        return [o for o, holding in self._holdings.items() if holding.expired(now_ns)]

    def holders(self) -> Mapping[int, int]:
        """Block to number of owners, for every block that has any."""
        return self._holders

    def check_integrity(self) -> None:
        """Assert that the counts follow from the holdings."""
        counted = Counter(b for holding in self._holdings.values() for b in holding.blocks)
        assert counted == self._holders, "block counts differ from the holdings"
        assert all(count > 0 for count in self._holders.values()), "a count without an owner"
        for owner, holding in self._holdings.items():
            until = holding.lease_until_ns
            known = until is None or (self._expires_ns is not None and self._expires_ns <= until)
            assert known, f"the end of the lease of {owner} would be missed"

    def _note_lease(self, until_ns: int | None) -> None:
        if until_ns is not None and (self._expires_ns is None or until_ns < self._expires_ns):
            self._expires_ns = until_ns
