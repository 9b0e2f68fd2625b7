"""In which order those who wait are served: fairly between tenants, by urgency within one.

Each tenant has a counter of the tokens it was served; the tenant with the least is next (virtual
token counters: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024). A request is
charged when it leaves for its workers: its prompt, and for its answer what the tenant's answers
have come to lately, set right when it ends. A tenant that comes back from idleness begins where
those who wait are, so that idleness saves up nothing.

Within a tenant the more urgent is first: `AGEING_S` of waiting weigh as much as one step of
priority, so that none waits for ever. Requests that come back from lost workers are before all.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from eastwest.clock import ns
from router.lifecycle import Lifecycle

AGEING_S = 10.0
# A token of an answer costs about as much as so many of a prompt.
OUTPUT_WEIGHT = 2
# How often others may pass a request for which there is no room.
PASSES_MAX = 64
# Tenants that are looked at when the first ones have no room.
LOOK_AHEAD = 8
_USUAL_OUTPUT = 64
_SMOOTHING = 0.1


@dataclass(slots=True, order=True)
class _Waiting:
    urgency_ns: int
    number: int
    life: Lifecycle = field(compare=False)
    passes: int = field(default=0, compare=False)


@dataclass(slots=True)
class _Tenant:
    """served: virtual tokens. usual_output: of its answers, lately. present: waiting or served."""

    served: float = 0.0
    usual_output: float = _USUAL_OUTPUT
    present: int = 0
    waiting: list[_Waiting] = field(default_factory=list)


class FairQueue:
    """Everybody who waits, and what those were charged who are served. Tenants are told apart by
    their cache salt."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._returned: dict[str, Lifecycle] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._charged: dict[str, float] = {}  # by request: tokens of its answer
        self._numbers = 0
        self._floor = 0.0  # what the tenant had been served that was served last

    def __len__(self) -> int:
        return len(self._returned) + len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._returned or request_id in self._waiting

    def waiting_of(self, salt: str) -> int:
        """How many of a tenant's requests wait that have not been served before."""
        tenant = self._tenants.get(salt)
        return len(tenant.waiting) if tenant else 0

    @property
    def tenants_waiting(self) -> int:
        return sum(1 for tenant in self._tenants.values() if tenant.waiting)

    def enter(self, life: Lifecycle) -> None:
        """A new request."""
        request = life.request
        tenant = self._tenants.setdefault(request.salt, _Tenant())
        if not tenant.present:
            tenant.served = max(tenant.served, self._floor)
        tenant.present += 1
        self._numbers += 1
        urgency = request.accepted_ns - request.priority * ns(AGEING_S)
        waiting = _Waiting(urgency, self._numbers, life)
        self._waiting[request.request_id] = waiting
        insort(tenant.waiting, waiting)

    def reenter(self, life: Lifecycle) -> None:
        """One that has lost its workers: before all others, those that came back earlier too."""
        self._returned = {life.request.request_id: life, **self._returned}

    def candidates(self) -> Iterator[Lifecycle]:
        """Who may be served next, best first; the queue must not change meanwhile. Whoever is
        passed by too often is the last candidate until it is served."""
        yield from self._returned.values()
        ranked = sorted(
            (tenant.served, tenant.waiting[0].number, tenant.waiting[0])
            for tenant in self._tenants.values()
            if tenant.waiting
        )
        for _, _, first in ranked[:LOOK_AHEAD]:
            yield first.life
            if first.passes >= PASSES_MAX:
                return

    def take(self, life: Lifecycle, passed: Iterable[Lifecycle] = ()) -> None:
        """It goes to its workers, and past others; it is charged, the first time."""
        for other in passed:
            if (waiting := self._waiting.get(other.request.request_id)) is not None:
                waiting.passes += 1
        request = life.request
        if self._returned.pop(request.request_id, None) is not None:
            return
        tenant = self._remove(request.request_id)
        self._floor = max(self._floor, tenant.served)
        tenant.served += len(request.prompt) + OUTPUT_WEIGHT * tenant.usual_output
        self._charged[request.request_id] = tenant.usual_output

    def end(self, life: Lifecycle) -> None:
        """Its life is over, waiting or served: what it was charged is set right."""
        request = life.request
        tenant = self._tenants[request.salt]
        self._returned.pop(request.request_id, None)
        if request.request_id in self._waiting:
            self._remove(request.request_id)
        elif (charged := self._charged.pop(request.request_id, None)) is not None:
            output = life.output_tokens
            tenant.served += OUTPUT_WEIGHT * (output - charged)
            tenant.usual_output += _SMOOTHING * (output - tenant.usual_output)
        tenant.present -= 1
        if not tenant.present and tenant.served <= self._floor:
            del self._tenants[request.salt]  # it would come back as a new one

    def latest_of_largest(self) -> Lifecycle | None:
        """The last one in line of the tenant that has most waiting."""
        tenants = [tenant for tenant in self._tenants.values() if tenant.waiting]
        if not tenants:
            return None
        return max(tenants, key=lambda tenant: len(tenant.waiting)).waiting[-1].life

    def check_integrity(self) -> None:
        """Assert that the two views of who waits agree."""
        listed = [w for tenant in self._tenants.values() for w in tenant.waiting]
        assert len(listed) == len(self._waiting)
        assert all(self._waiting[w.life.request.request_id] is w for w in listed)
        assert not self._returned.keys() & self._waiting.keys()
        present = len(self._waiting) + len(self._charged)
        assert sum(tenant.present for tenant in self._tenants.values()) == present

    def _remove(self, request_id: str) -> _Tenant:
        waiting = self._waiting.pop(request_id)
        tenant = self._tenants[waiting.life.request.salt]
        tenant.waiting.remove(waiting)
        return tenant
