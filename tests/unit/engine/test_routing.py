"""Which experts a token gets and with which weights, and which share keeps which experts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.moe_config import Routing, Scoring
from engine.placement import place_experts
from engine.routing import route

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, 2.5]])


def chosen(routing: Routing, correction: list[float] | None = None) -> dict[int, float]:
    bias = None if correction is None else torch.tensor(correction)
    ids, weights = route(LOGITS, routing, bias)
    assert ids.shape == weights.shape == (1, routing.top_k)
    return dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True))


def test_softmax_is_over_all_experts_unless_renormalised() -> None:
    plain = chosen(Routing(2))
    probabilities = LOGITS[0].softmax(0)
    assert plain == pytest.approx({1: probabilities[1].item(), 5: probabilities[5].item()})
    renormalised = chosen(Routing(2, renormalise=True, scale=3.0))
    assert sum(renormalised.values()) == pytest.approx(3.0)
    assert renormalised[1] / renormalised[5] == pytest.approx(plain[1] / plain[5])


def test_only_the_best_groups_compete() -> None:
    by_best = Routing(2, groups=3, groups_kept=1)
    assert set(chosen(by_best)) == {0, 1}, "the group of the single best expert"
    by_pair = Routing(2, groups=3, groups_kept=1, group_best=2)
    probabilities = LOGITS[0].softmax(0).view(3, 2).sum(1)
    best = int(probabilities.argmax())
    assert set(chosen(by_pair)) == {2 * best, 2 * best + 1}


def test_a_correction_chooses_but_does_not_weigh() -> None:
    routing = Routing(1, Scoring.SIGMOID, scale=2.0, corrected=True)
    assert chosen(routing, [0.0] * 4 + [9.0, 0.0]) == pytest.approx(
        {4: 2 * torch.tensor(-1.0).sigmoid().item()}
    )


@given(
    tokens=st.integers(0, 5),
    groups=st.sampled_from([1, 2, 4]),
    top_k=st.integers(1, 4),
    scoring=st.sampled_from(list(Scoring)),
    renormalise=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_token_gets_distinct_experts_of_the_groups_kept(
    tokens: int, groups: int, top_k: int, scoring: Scoring, renormalise: bool, seed: int
) -> None:
    kept = max(1, groups // 2)
    routing = Routing(top_k, scoring, renormalise, groups=groups, groups_kept=kept, group_best=2)
    logits = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(seed))
    ids, weights = route(logits, routing)
    assert ids.shape == weights.shape == (tokens, top_k)
    assert weights.dtype == torch.float32
    for row in ids.tolist():
        assert len(set(row)) == top_k
        assert len({expert // (16 // groups) for expert in row}) <= kept
    if renormalise:
        torch.testing.assert_close(weights.sum(1), torch.ones(tokens))


@given(
    shares=st.integers(1, 5),
    each=st.integers(1, 6),
    data=st.data(),
)
def test_every_expert_is_placed_once_and_shares_are_equally_many(
    shares: int, each: int, data: st.DataObject
) -> None:
    count = shares * each
    loads = data.draw(st.none() | st.lists(st.integers(1, 1000), min_size=count, max_size=count))
    placement = place_experts(count, shares, loads)
    assert [len(share) for share in placement] == [each] * shares
    assert sorted(expert for share in placement for expert in share) == list(range(count))
    if loads is None:
        assert [expert for share in placement for expert in share] == list(range(count))
    else:
        busiest = sorted(range(count), key=lambda e: (-loads[e], e))[:shares]
        assert all(len(set(share) & set(busiest)) == 1 for share in placement)


def test_busy_experts_are_spread() -> None:
    loads = [90, 80, 10, 10, 5, 5]
    assert place_experts(6, 2) == ((0, 1, 2), (3, 4, 5))
    placed = place_experts(6, 2, loads)
    assert sorted(sum(loads[e] for e in share) for share in placed) == [95, 105]
    assert placed == place_experts(6, 2, loads)
