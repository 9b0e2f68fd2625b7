"""Budgets in virtual time: real router and workers, a SIMULATED engine."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.budgets import Form, attained
from eastwest.clock import ns
from eastwest.config import Config, KVConfig, PoolConfig, RouterConfig
from eastwest.layout import KVSpec
from eastwest.messages import WorkerInfo
from eastwest.ports import StepRow
from eastwest.types import Role, SamplingParams, Slo
from router.budgets import NOTCHES
from router.requests import Outcome, Request
from sim.cluster import Cluster, Shape
from sim.virtual_loop import VirtualClock, VirtualLoop

KV = KVSpec(num_layers=32, num_kv_heads=8, key_dim=128, value_dim=128, dtype="bfloat16")
STEP_TOKENS, BARE_S, TOKEN_S = 4096, 0.01, 2e-5
A, P, D = Role.AGGREGATED, Role.PREFILL, Role.DECODE
Steps = list[tuple[int, int]]


@dataclass(frozen=True)
class Costs:
    """What steps take here, as the router knows it too."""

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        return BARE_S + new_tokens * TOKEN_S

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        return BARE_S + prompt_tokens * TOKEN_S

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        return 1.0

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        return tokens * 1e-6


def served(
    tpots_s: Sequence[float],
    *,
    replicas: tuple[tuple[Role, int], ...] = ((A, 1),),
    routers: int = 1,
    conditional: bool = True,
) -> tuple[Steps, Counter[tuple[str, str]]]:
    """One request after the other with these targets, each while those before decode. What steps
    had: sequences that decode, and prompt tokens; and requests by their workers."""
    steps: Steps = []

    def step_s(rows: Sequence[StepRow]) -> float:
        prompt = sum(len(row.tokens) for row in rows if len(row.tokens) > 1)
        steps.append((sum(len(row.tokens) == 1 for row in rows), prompt))
        return BARE_S + prompt * TOKEN_S

    shape = Shape(
        replicas,
        num_blocks=4096,
        pool=PoolConfig(step_tokens=STEP_TOKENS, running_max=16),
        kv=KV,
        config=Config(router=RouterConfig(conditional=conditional), kv=KVConfig(block_tokens=64)),
        costs=Costs(),
        routers=routers,
    )
    loop = VirtualLoop()
    pairs: Counter[tuple[str, str]] = Counter()

    async def run() -> None:
        cluster = Cluster(shape, lambda role: step_s, VirtualClock(loop), random.Random(1))
        cluster.start()
        for number, tpot_s in enumerate(tpots_s):
            prompt = tuple(range(10_000 * number, 10_000 * number + 8000))
            now = cluster.clock.now_ns()
            request = Request(
                f"r{number}", "", "", prompt, SamplingParams(temperature=0.0, seed=0), 400, now,
                now + ns(600.0), slo=Slo(2.0, tpot_s),
            )  # fmt: skip
            assert cluster.submit(request, number % routers) is None
            await asyncio.sleep(1.0)
        await cluster.quiet()
        for seen in cluster.finished():
            assert isinstance(seen.outcome, Outcome)
            pairs[seen.outcome.prefill_worker, seen.outcome.decode_worker] += 1
        cluster.check_quiet()
        await cluster.close()

    loop.run(run())
    assert pairs.total() == len(tpots_s), "a request was lost"
    return steps, pairs


def mixed(steps: Steps) -> set[int]:
    """Prompt tokens of steps that decoded too; the last chunk of a prompt may be any."""
    return {prompt for sequences, prompt in steps if sequences and prompt}


def test_a_step_that_decodes_has_no_more_of_a_prompt_than_its_targets_allow() -> None:
    steps, _ = served([0.1, 0.03, 0.1])
    # The first is alone. Then 0.1 s allow 4,500 tokens, and 0.03 s allow 1,000.
    assert max(prompt for sequences, prompt in steps if not sequences) == STEP_TOKENS
    assert max(mixed(steps)) == STEP_TOKENS
    steps, _ = served([0.03, 0.1, 0.1])
    assert max(mixed(steps)) == max(notch for notch in NOTCHES if notch * TOKEN_S <= 0.02) == 768
    assert max(prompt for sequences, prompt in steps if not sequences) == STEP_TOKENS


def test_where_roles_are_fixed_a_prompt_takes_whole_steps() -> None:
    steps, _ = served([0.03, 0.1, 0.1], conditional=False)
    assert max(mixed(steps)) == STEP_TOKENS


def test_of_two_routers_the_one_that_allows_less_counts() -> None:
    steps, _ = served([0.03, 0.1, 0.1, 0.1], routers=2)
    assert max(mixed(steps)) == 768


def test_aggregated_workers_decode_what_others_have_prefilled() -> None:
    _, pairs = served([0.012] * 6, replicas=((P, 1), (A, 1)))
    assert pairs["prefill-0", "aggregated-0"] >= 5
    # Two share the work as well: one that decodes little prefills for the other.
    _, pairs = served([0.012] * 6, replicas=((A, 2),))
    assert pairs["aggregated-0", "aggregated-1"] + pairs["aggregated-1", "aggregated-0"]


def test_between_the_pure_forms_more_requests_meet_both_targets() -> None:
    slo, span_s, seed, rate = Slo(0.5, 0.012), 3.0, 1, 125.0
    ours = attained(Form(((P, 1), (D, 3)), 2048, budgets=True), slo, span_s, seed, rate)
    aggregated = attained(Form(((A, 4),), 512, budgets=False), slo, span_s, seed, rate)
    split = attained(Form(((P, 2), (D, 2)), 2048, budgets=False), slo, span_s, seed, rate)
    assert ours > 0.9 > max(aggregated, split)
