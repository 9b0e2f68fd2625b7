"""Which share of the ranks keeps which experts."""

from __future__ import annotations

from collections.abc import Sequence

Placement = tuple[tuple[int, ...], ...]  # the ids of each share's experts, ascending


def place_experts(num_experts: int, shares: int, loads: Sequence[int] | None = None) -> Placement:
    """The same number of experts for each share, which must divide `num_experts`.

    Contiguous runs without `loads`. With them (how much each expert was used), the busiest expert
    goes to the share that has least to do so far, and so on, so that shares are about as busy as
    each other; of equals the lower number goes first.
    """
    assert num_experts % shares == 0, "every share keeps as many experts"
    each = num_experts // shares
    if loads is None:
        return tuple(tuple(range(s * each, (s + 1) * each)) for s in range(shares))
    assert len(loads) == num_experts
    kept: list[list[int]] = [[] for _ in range(shares)]
    total = [0] * shares
    for expert in sorted(range(num_experts), key=lambda e: (-loads[e], e)):
        open_shares = (s for s in range(shares) if len(kept[s]) < each)
        share = min(open_shares, key=lambda s: (total[s], s))
        kept[share].append(expert)
        total[share] += loads[expert]
    return tuple(tuple(sorted(experts)) for experts in kept)
