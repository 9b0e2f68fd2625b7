"""Plans: what is asked and refused in words, and what an answer says."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from eastwest.errors import ConfigError, EastWestError
from eastwest.layout import ParallelLayout
from planner.advice import advise, describe
from planner.ask import ask
from planner.planning import LEVEL, Plan, plan
from planner.spares import available, most_used
from planner.split import Mode, Pool, Split, Targets
from planner.stacks import Stack, find_stack, stack_names
from planner.workload import steady


def asked(**changed: Any) -> dict[str, Any]:
    """Names and numbers of a question that has an answer, some changed."""
    usual = {
        "model": "llama-3.1-8b", "hardware": "h100-sxm", "devices": 4, "isl": 2000, "osl": 200,
        "ttft_s": 0.6, "tpot_s": 0.03,
    }  # fmt: skip
    return {k: v for k, v in {**usual, **changed}.items() if v is not None}


@cache
def a_plan() -> Plan:
    return plan(ask(**asked(devices=8, workload=steady(2000, 200, spread=0.3), isl=None, osl=None)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "lama-3.1-8b"}, "did you mean .*llama-3.1-8b"),
        ({"hardware": "h101"}, "did you mean .*h100-sxm"),
        ({"weights": "fp9"}, "number format 'fp9' is not known"),
        ({"kv": "fp9"}, "number format 'fp9' is not known"),
        ({"stack": "vlm"}, "stack 'vlm' is not known; did you mean vllm"),
        ({"isl": 132_000}, r"up to 132,200 tokens.*allowed: the 131,072 of llama-3.1-8b's context"),
        ({"isl": 0}, "isl is 0"),
        ({"osl": None}, "osl is 0"),
        ({"isl": math.nan}, "isl is nan"),
        ({"workload": steady(100, 10)}, "a workload has lengths of its own"),
        ({"ttft_s": 2000.0, "tpot_s": 20.0}, "TPOT 20 s; allowed: .* from 0.1 ms to 10 s"),
        ({"ttft_s": math.nan}, "TTFT nan s"),
        ({"percentile": 90}, "percentile is 90; allowed: 0.5 to below 1"),
        ({"percentile": 1.0}, "percentile is 1"),
        ({"percentile": 0.1}, "percentile is 0.1"),
        ({"devices": None}, "a number of devices or a budget; allowed: one of the two"),
        ({"budget_per_hour": 10}, "a number of devices or a budget; allowed: one of the two"),
        ({"devices": None, "budget_per_hour": 1}, r"\$1 an hour buys no device at \$2.5"),
        ({"devices": None, "budget_per_hour": -9}, "buys no device"),
        ({"devices": None, "budget_per_hour": math.inf}, r"budget is \$inf"),
        ({"devices": None, "budget_per_hour": math.nan}, r"budget is \$nan"),
        ({"devices": None, "budget_per_hour": 9, "price_per_hour": 0}, "needs the price"),
        ({"price_per_hour": -1}, r"price of a device is \$-1 an hour; allowed: from 0"),
        ({"price_per_hour": math.nan}, "price of a device"),
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EastWestError, match=message) as refused:
        ask(**asked(**changed))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("budget", "price", "devices"), [(7.5, None, 3), (0.3, 0.1, 3), (4.9, 0.7, 7), (100, 2.5, 40)]
)
def test_a_budget_buys_whole_devices(budget: float, price: float | None, devices: int) -> None:
    question = ask(**asked(devices=None, budget_per_hour=budget, price_per_hour=price))
    assert question.devices == devices


def test_what_is_not_given_is_as_published_and_usual() -> None:
    question = ask(**asked(model="deepseek-v3"))
    assert question.precision.experts == "fp8"
    assert question.precision.kv == "bf16"
    assert question.stack == find_stack("tuned")
    assert question.price_per_hour == 2.5
    assert ask(**asked(hardware="cpu")).stack.name == "eastwest"
    assert ask(**asked(hardware="cpu", stack="vllm")).stack.name == "vllm"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"devices": 0}, "0 devices; allowed: 1 to 4096"),
        ({"devices": 5000}, "5000 devices; allowed: 1 to 4096"),
        ({"model": "llama-3.1-405b", "devices": 8},
         r"weighs 812 GB in bf16 and 8 x h100-sxm hold 576 GB .*: 236 GB short; "
         r"the smallest that fits: 12 \(tp=2,pp=6\); fewer bits"),
        ({"model": "llama-3.1-70b", "devices": 1, "hardware": "h200-sxm"},
         "141 GB .* hold 127 GB .*: 14 GB short; the smallest that fits: 2"),
        ({"ttft_s": 0.01}, r"TTFT 10 ms is out of reach \(the best here is .*\); allowed: looser"),
        ({"tpot_s": 0.001}, r"TPOT 1 ms is out of reach \(the best here is"),
        ({"ttft_s": 0.01, "tpot_s": 0.001}, "TTFT 10 ms is out of reach .* and TPOT 1 ms is out"),
        ({"availability": 1.0}, "availability 1 of hosts"),
        ({"availability": math.nan}, "availability nan of hosts"),
        ({"availability": 0.999999}, "cannot be had with 1 hosts"),
    ],
)  # fmt: skip
def test_a_question_without_an_answer_is_told_why(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        plan(ask(**asked(**changed)))
    assert "\n" not in str(refused.value)


def test_the_best_that_is_told_can_be_had() -> None:
    """Targets a little looser than the limits that the refusal names have an answer."""
    tight = asked(ttft_s=0.01, tpot_s=0.001, isl=1000, osl=50)
    with pytest.raises(ConfigError) as refused:
        plan(ask(**tight))
    limits = [part.split(")")[0] for part in str(refused.value).split("the best here is ")[1:]]
    assert all(limit.endswith(" ms") for limit in limits)
    ttft, tpot = (float(limit.removesuffix(" ms")) / 1e3 for limit in limits)
    answer = plan(ask(**asked(ttft_s=ttft * 1.3, tpot_s=tpot * 1.3, isl=1000, osl=50)))
    assert answer.best.rate > 0


def test_the_choice_is_the_most_or_the_simplest_of_what_is_level() -> None:
    answer = a_plan()
    found = [split for split in answer.by_mode.values() if split is not None]
    most = max(split.rate for split in found)
    assert answer.best in found
    assert answer.best.rate >= most * (1 - LEVEL)
    simpler = list(Mode)[: list(Mode).index(answer.best.mode)]
    assert all(
        other.rate < most * (1 - LEVEL) for mode in simpler if (other := answer.by_mode[mode])
    )


def test_an_answer_is_whole() -> None:
    answer = a_plan()
    assert set(answer.by_mode) == set(answer.frontiers) == set(Mode)
    assert len(answer.changes) == 5
    assert answer.spares == answer.question.devices - answer.best.devices
    assert 0.9 < answer.up <= 1
    assert answer.needs.kv_bytes_per_token == 131_072
    for change in answer.changes:
        # A simpler way of serving may have been chosen, which is level.
        most = 0.0 if change.best is None else change.best.rate / (1 - LEVEL)
        assert 0 <= change.kept <= most * 1.01, change.what
    dollars = answer.dollars_per_million_tokens(answer.best)
    assert dollars == pytest.approx(
        answer.best.devices * 2.5 / 3600 / answer.best.tokens_per_s * 1e6
    )


def test_progress_is_told_and_only_grows() -> None:
    told: list[float] = []
    answer = plan(a_plan().question, lambda _, share: told.append(share))
    assert answer == a_plan()
    assert told == sorted(told)
    assert all(0 <= share < 1 for share in told)


def test_availability_holds_hosts_back() -> None:
    # Of 18 hosts that are each up 99 % of the time, 16 are up 99.9 % of the time: 64 + 8.
    assert most_used(18, 0.999) == 16
    answer = plan(
        ask("deepseek-v3", "gb200", devices=72, isl=4000, osl=500, ttft_s=2, tpot_s=0.05,
            availability=0.999)
    )  # fmt: skip
    assert answer.best.devices <= 64
    assert answer.spares >= 8
    assert answer.up >= 0.999


@pytest.mark.parametrize(("hosts", "needed"), [(1, 1), (18, 16), (18, 0), (18, 18), (64, 60)])
def test_availability_is_binomial(hosts: int, needed: int) -> None:
    ways = sum(
        math.comb(hosts, up) * 0.99**up * 0.01 ** (hosts - up) for up in range(needed, hosts + 1)
    )
    assert available(hosts, needed) == pytest.approx(ways)


def test_availability_of_thousands_of_hosts() -> None:
    assert available(4096, 2048) == pytest.approx(1)
    used = most_used(4096, 0.999)
    assert available(4096, used) >= 0.999 > available(4096, used + 1)


@pytest.mark.parametrize(("hosts", "target"), [(0, 0.9), (4, 0.0), (4, 1.0), (200_000, 0.9)])
def test_availability_that_makes_no_sense_is_refused(hosts: int, target: float) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        most_used(hosts, target)


def a_split(mode: Mode, rate: float, load: float = 1.0, share: float = 0.3) -> Split:
    tp = ParallelLayout(tp=2)
    pools = {
        Mode.AGGREGATED: (Pool("aggregated", tp, 4, 4096, 40.0, 1.0),),
    }.get(mode, (Pool("prefill", tp, 1, 16384, 0.0, 1.0), Pool("decode", tp, 3, 4096, 60.0, load)))
    return Split(mode, pools, rate, 0.5, 0.02, 0.018, 200.0, "decode", prompt_share=share)


def sentence(best: Split, *others: Split) -> str:
    by_mode: dict[Mode, Split | None] = dict.fromkeys(Mode)
    by_mode |= {split.mode: split for split in (best, *others)}
    return advise(steady(2000, 200), Targets(0.6, 0.03), best, by_mode, LEVEL)


def test_advice_to_disaggregate_says_by_how_much_and_why() -> None:
    text = sentence(a_split(Mode.DISAGGREGATED, 30.0), a_split(Mode.AGGREGATED, 20.0))
    assert text.startswith("Disaggregate: 1 prefill replica of tp=2 and 3 decode replicas of tp=2")
    assert "30 requests/s within TTFT 600 ms and TPOT 30 ms for 90% of requests" in text
    assert "1.50 times as many as aggregated serving (4 aggregated replicas of tp=2: 20)" in text
    assert "10 prompt tokens are computed for each one of an answer" in text
    assert "30% of each aggregated step" in text


def test_advice_not_to_disaggregate_says_by_how_much_and_why() -> None:
    text = sentence(a_split(Mode.AGGREGATED, 30.0), a_split(Mode.DISAGGREGATED, 20.0, load=0.4))
    assert text.startswith("Do not disaggregate: 4 aggregated replicas of tp=2 serve 30 requests/s")
    assert "1.50 times as many as disaggregated serving" in text
    assert "its steps have room for prompts, which take 30% of them" in text
    assert "the decode pool of the split would stand partly idle" in text


def test_advice_where_two_are_level_or_one_is_alone() -> None:
    level = sentence(a_split(Mode.AGGREGATED, 30.0), a_split(Mode.DISAGGREGATED, 30.5))
    assert "level with disaggregated serving" in level
    alone = sentence(a_split(Mode.DISAGGREGATED, 30.0))
    assert alone.endswith("no other way of serving meets both targets.")


def test_conditional_says_which_prompts_stay() -> None:
    split = replace(a_split(Mode.CONDITIONAL, 30.0), local_tokens=1234.0)
    assert "prompts of up to 1,234 fresh tokens stay on decode" in describe(split)
    assert sentence(split, a_split(Mode.AGGREGATED, 20.0)).startswith(
        "Disaggregate conditionally: "
    )


def test_plans_say_what_their_advice_says() -> None:
    """The advice of a real plan names its best split, and the margin over aggregated serving."""
    answer = a_plan()
    assert describe(answer.best) in answer.advice
    others = [s for s in answer.by_mode.values() if s is not None and s is not answer.best]
    assert any(f"{answer.best.rate / s.rate:.2f} times" in answer.advice or "level" in answer.advice
               for s in others)  # fmt: skip


def test_stacks() -> None:
    assert "tuned" in stack_names()
    for name in stack_names():
        assert find_stack(name.upper()).name == name
        assert find_stack(name).source
    bare = Stack(name="bare", layer_s=0.0)
    assert bare.experts("matmul", "fp8") == 0.5
    one = Stack(name="one", layer_s=0.0, expert_matmul={"fp8": 0.2, "bf16": 0.4})
    assert one.experts("matmul", "fp8") == 0.2
    assert one.experts("matmul", "mxfp4") == pytest.approx(0.3)
