"""Sampling: what each parameter does to the choice, and that nothing else does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eastwest.ports import SampleInput
from eastwest.types import SEED_MAX, SamplingParams
from engine.sampling import sample, uniform

VOCAB = 3000  # wider than the candidates first looked at for top_p


def some_logits(rows: int = 1, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def an_input(
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: Sequence[int] = (),
    **params: Any,
) -> SampleInput:
    return SampleInput(SamplingParams(**{"seed": 1, **params}), prompt, output, banned)


def draw(logits: torch.Tensor, count: int, **params: Any) -> Counter[int]:
    """Tokens of `count` seeds."""
    inputs = [an_input(**{**params, "seed": seed}) for seed in range(count)]
    return Counter(s.token for s in sample(logits.expand(count, -1), inputs))


def test_greedy_takes_the_most_likely_and_bans_hold() -> None:
    logits = some_logits(3)
    first, second = logits[1].topk(2).indices.tolist()
    tokens = sample(logits, [an_input(temperature=0.0)] * 3)
    assert [t.token for t in tokens] == logits.argmax(-1).tolist()
    [chosen] = sample(logits[1:2], [an_input(temperature=0.0, banned=[first])])
    assert chosen.token == second


def test_frequencies_follow_the_distribution_at_its_temperature() -> None:
    logits = torch.full((1, VOCAB), -1e4)
    logits[0, :3] = torch.tensor([2.0, 1.0, 0.0])
    for temperature in (0.5, 1.0, 2.0):
        counts = draw(logits, 3000, temperature=temperature)
        expected = (logits[0] / temperature).softmax(-1)
        for token in range(3):
            assert abs(counts[token] / 3000 - float(expected[token])) < 0.03
        assert set(counts) <= {0, 1, 2}


@pytest.mark.parametrize("params", [{}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_the_narrowest_choice_is_the_most_likely_token(params: dict[str, Any]) -> None:
    temperature = 1e-9 if not params else 5.0
    logits = some_logits()
    assert set(draw(logits, 20, temperature=temperature, **params)) == {int(logits.argmax())}


@pytest.mark.parametrize("spread", [0.05, 2.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_leaves_the_smallest_set_that_reaches_it(top_p: float, spread: float) -> None:
    logits = some_logits(spread=spread)
    probabilities, order = logits[0].softmax(-1).sort(descending=True)
    width = int((probabilities.cumsum(0) < top_p).sum()) + 1
    drawn = draw(logits, 300, top_p=top_p)
    assert set(drawn) <= set(order[: width + 1].tolist())
    if width < 50:
        assert set(drawn) >= set(order[: width // 4].tolist())


@pytest.mark.parametrize(("top_p", "left"), [(0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)])
def test_top_p_stops_with_the_token_that_reaches_it(top_p: float, left: int) -> None:
    logits = torch.full((1, VOCAB), -1e4)
    logits[0, :4] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(logits, 300, top_p=top_p)) == set(range(left))


def test_top_k_and_min_p_leave_what_they_say() -> None:
    logits = some_logits(spread=0.5)
    assert set(draw(logits, 200, top_k=5)) == set(logits[0].topk(5).indices.tolist())
    allowed = (logits[0] >= logits.max() + math.log(0.5)).nonzero().flatten().tolist()
    assert set(draw(logits, 500, min_p=0.5)) <= set(allowed)


def test_top_p_counts_over_what_top_k_left() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, :4] = 5.0
    assert set(draw(logits, 200, top_k=4, top_p=0.5)) <= {0, 1, 2, 3}
    assert len(draw(logits, 200, top_k=4, top_p=0.5)) == 2


def test_penalties_follow_their_definitions() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, :4] = torch.tensor([4.0, 3.0, 2.0, -1.0])

    def after(**params: Any) -> int:
        [chosen] = sample(logits, [an_input(temperature=0.0, **params)])
        return chosen.token

    assert after(prompt=[0], repetition_penalty=1.5) == 1, "4 / 1.5 is below 3"
    assert after(prompt=[0], repetition_penalty=1.2) == 0
    assert after(prompt=[0], presence_penalty=2.0) == 0, "a prompt does not count"
    assert after(output=[0, 0], presence_penalty=0.9) == 0
    assert after(output=[0, 0], frequency_penalty=0.6) == 1, "0.6 for each of two"
    assert after(output=[0], frequency_penalty=0.6) == 0
    assert after(output=[1], presence_penalty=-1.5) == 1


def test_a_negative_logit_is_penalised_downwards() -> None:
    logits = torch.full((1, VOCAB), -10.0)
    logits[0, :2] = torch.tensor([-1.0, -1.5])
    [chosen] = sample(logits, [an_input(temperature=0.0, prompt=[0], repetition_penalty=2.0)])
    assert chosen.token == 1


def test_a_row_is_sampled_alike_in_any_batch() -> None:
    logits = some_logits(4)
    inputs = [
        an_input(temperature=0.0),
        an_input(seed=5, output=[1, 2]),
        an_input(seed=5, top_p=0.9, output=[3]),
        an_input(seed=9, top_k=20, banned=[4]),
    ]
    together = sample(logits, inputs)
    alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(inputs)]
    assert together == alone
    assert sample(logits.flip(0), inputs[::-1]) == together[::-1]


def test_the_position_and_the_seed_are_the_whole_random_state() -> None:
    logits = some_logits(spread=0.1)
    tokens = {
        (seed, position): sample(logits, [an_input(seed=seed, output=[7] * position)])[0].token
        for seed in range(6)
        for position in range(6)
    }
    assert len(set(tokens.values())) > 30, "each seed and position draws anew"
    again = sample(logits, [an_input(seed=3, prompt=[1, 2], output=[9] * 4)])[0].token
    assert again == tokens[3, 4], "what prompt and output hold does not matter"


def test_uniform_numbers_stay_what_they_are() -> None:
    # A sequence may move to a worker of another version in mid-stream and must go on alike.
    assert uniform(0, 0) == 3250122393828 / 2**48
    assert uniform(SEED_MAX, 1000) == 127780765831047 / 2**48


@given(st.integers(0, SEED_MAX), st.integers(0, 1 << 31))
def test_uniform_numbers_are_below_one(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0


def test_logprobs_are_the_models_own() -> None:
    logits = some_logits(1)
    row = an_input(temperature=0.7, top_k=3, presence_penalty=1.0, output=[1], logprobs=4)
    [chosen] = sample(logits, [row])
    expected = logits[0].log_softmax(-1)
    assert chosen.logprob == pytest.approx(float(expected[chosen.token]))
    assert [t.token for t in chosen.top] == expected.topk(4).indices.tolist()
    assert [t.logprob for t in chosen.top] == pytest.approx(expected.topk(4).values.tolist())
    [bare] = sample(logits, [an_input(logprobs=0)])
    assert bare.top == ()
    assert bare.logprob is not None


def test_logits_are_not_changed() -> None:
    logits = some_logits(2)
    before = logits.clone()
    sample(logits, [an_input(output=[1], presence_penalty=1.0, banned=[0])] * 2)
    assert torch.equal(logits, before)
