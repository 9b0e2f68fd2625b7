"""A mixture of experts: each token goes through the few networks that its router chooses.

Experts may be spread over ranks. A rank routes its share of its group's tokens, and pairs of token
and expert travel to the rank that keeps the expert and back:

    route -> order by expert -> [counts, rows to their owners] -> networks -> [rows back] -> sum

What is in brackets happens only where the experts are on several ranks; every rank of the group
takes part in it, though it may have no tokens. Where an expert is sliced over ranks, each of them
does all this for its slice, and the final sum over the tensor ranks adds slices and shares alike.

Shapes: T tokens, E experts, K of them to a token, P pairs of token and expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from engine.comm import Comm
from engine.linear import Linear
from engine.moe_config import Routing
from engine.norm import RmsNorm
from engine.placement import Placement
from engine.routing import route


class Network:
    """A gated network. gate_up: both halves below each other."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self._gate_up = gate_up
        self._down = down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down(self._inner(x))

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        """``target += self(x)``."""
        self._down.add_to(target, self._inner(x))

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        return F.silu(gate).mul_(up)


class Router:
    """weight: ``[E, hidden]`` float32; correction: ``[E]`` float32 or None."""

    def __init__(
        self, weight: torch.Tensor, routing: Routing, correction: torch.Tensor | None
    ) -> None:
        self._weight = weight
        self._routing = routing
        self._correction = correction

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x [T, hidden]`` -> (ids, weights) ``[T, K]``; see `route`."""
        return route(F.linear(x.float(), self._weight), self._routing, self._correction)


class ExpertFeedForward:
    """Is a `FeedForward`.

    experts: the networks that this rank keeps, in the order of its share of `placement`, whose
    shares are the members of ``comm.experts``. shared: the network of all tokens, if any.
    """

    def __init__(
        self,
        norm: RmsNorm,
        router: Router,
        experts: Sequence[Network],
        shared: Network | None,
        placement: Placement,
        comm: Comm,
    ) -> None:
        device = norm.device
        self._norm = norm
        self._router = router
        self._experts = experts
        self._shared = shared
        self._comm = comm
        # Where experts are in order as placed, their numbers are places.
        in_order = [expert for share in placement for expert in share]
        places = torch.tensor(in_order, device=device).argsort()
        self._place_of = None if in_order == sorted(in_order) else places
        self._num_experts = len(in_order)
        self._loads = torch.zeros(len(experts), dtype=torch.long, device=device)

    @property
    def exchanges(self) -> bool:
        """Whether each call is one of all ranks that share the experts."""
        return self._comm.experts.size > 1

    def expert_loads(self) -> torch.Tensor:
        """See `FeedForward`; in the order of this rank's share."""
        return self._loads

    def add_to(self, hidden: torch.Tensor) -> None:
        """See `FeedForward`; `hidden` may have no rows."""
        comm = self._comm
        x = self._norm(hidden)
        target = hidden if comm.tensor.size == 1 else torch.zeros_like(hidden)
        if self._shared is not None and len(x):
            self._shared.add_to(target, x)
        first, stop = (len(x) * share // comm.shares for share in (comm.share, comm.share + 1))
        self._add_routed(target[first:stop], x[first:stop])
        if comm.tensor.size > 1 and len(x):
            comm.tensor.all_reduce(target)
            hidden.add_(target)

    def _add_routed(self, target: torch.Tensor, x: torch.Tensor) -> None:
        ids, weights = self._router(x)
        places = ids.flatten() if self._place_of is None else self._place_of[ids.flatten()]
        order = places.argsort(stable=True)
        counts = places.bincount(minlength=self._num_experts)
        tokens = order // ids.shape[1]
        rows = x[tokens]
        done = self._at_owners(rows, counts) if self.exchanges else self._compute(rows, counts)
        done.mul_(weights.flatten()[order].unsqueeze(1))
        target.index_add_(0, tokens, done)

    def _at_owners(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """What the owners of the experts make of ``rows [P, hidden]``, which lie in the order of
        places; counts: ``[E]``, rows of each place."""
        group = self._comm.experts
        kept = len(self._experts)
        equal = [kept] * group.size
        to_owners = counts.view(group.size, kept)
        from_sources = group.all_to_all(counts, equal, equal).view(group.size, kept)
        sent, received = to_owners.sum(1).tolist(), from_sources.sum(1).tolist()
        arrived = group.all_to_all(rows, sent, received)
        # They come by source and then by expert, and are computed by expert.
        expert = torch.arange(kept, device=rows.device).repeat(group.size)
        order = expert.repeat_interleave(from_sources.flatten()).argsort(stable=True)
        done = torch.empty_like(arrived)
        done[order] = self._compute(arrived[order], from_sources.sum(0))
        return group.all_to_all(done, received, sent)

    def _compute(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Each expert's network over its run of ``rows [P, hidden]``."""
        self._loads.add_(counts)
        done, at = [], 0
        for network, count in zip(self._experts, counts.tolist(), strict=True):
            if count:
                done.append(network(rows[at : at + count]))
                at += count
        return torch.cat(done) if done else rows
