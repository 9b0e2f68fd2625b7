"""How many prompt tokens a step may have that decodes."""

from __future__ import annotations

import pytest

from eastwest.messages import StepBudget, WorkerInfo
from eastwest.testing.builders import a_worker
from eastwest.types import Role
from router.attempt import Attempt
from router.budgets import NOTCHES, Budgets
from router.fleet import Worker
from router.placement import Placement
from router.requests import Action, Send

BARE_S, TOKEN_S, FREE_TOKENS = 0.010, 1e-5, 100


class SomeCosts:
    """A step hides some tokens behind its memory traffic; those beyond make it longer."""

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        return new_tokens * TOKEN_S

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        return BARE_S + max(0, prompt_tokens - FREE_TOKENS) * TOKEN_S

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        return 0.0

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        return 0.0


def an_attempt(worker: Worker, tpot_s: float) -> Attempt:
    """Of a request with this target, whose prompt is computed and which decodes there."""
    attempt = Attempt("w", Placement(worker, worker, blocks=1), 1000, False, tpot_s)
    attempt.ask()
    return attempt


def said(budgets: Budgets, attempt: Attempt) -> list[int]:
    """Budgets that workers are told."""
    out: list[Action] = []
    budgets.touch(attempt)
    budgets.tell(out)
    return [
        action.command.prompt_tokens
        for action in out
        if isinstance(action, Send) and isinstance(action.command, StepBudget)
    ]


def a_decoder(role: Role = Role.DECODE, step_tokens: int = 8192) -> Worker:
    return Worker(a_worker("d0", role, step_tokens=step_tokens), 0)


@pytest.mark.parametrize(
    ("tpot_s", "budget"),
    [
        (0.001, 256),  # nothing keeps it: what is nearly free, a fifth of the step
        (0.011, 256),
        (0.014, 384),
        (0.015, 512),
        (0.050, 4096),
        (1.000, 8192),
    ],
)
def test_it_is_the_most_that_keeps_the_tightest_target(tpot_s: float, budget: int) -> None:
    worker, budgets = a_decoder(), Budgets(SomeCosts())
    for target_s in (2.0, tpot_s):
        an_attempt(worker, target_s).fill(0)
    waiting = an_attempt(worker, 5.0)
    said(budgets, waiting)
    assert worker.budget == budget
    steps_s = [SomeCosts().step_s(worker.info, 2, 0, n) for n in (*NOTCHES, 8192) if n > budget]
    assert all(step_s > max(tpot_s, 1.2 * BARE_S) for step_s in steps_s)


def test_a_worker_is_told_when_it_changes() -> None:
    worker, budgets = a_decoder(), Budgets(SomeCosts())
    first = an_attempt(worker, 0.015)
    assert said(budgets, first) == []  # nothing decodes: whole steps, as ever
    first.fill(0)
    assert said(budgets, first) == [512]
    second = an_attempt(worker, 0.050)
    second.fill(0)
    assert said(budgets, second) == []
    first.release()
    assert said(budgets, second) == [4096]
    second.release()
    assert said(budgets, second) == [8192]


def test_prefill_workers_and_those_that_are_gone_are_told_nothing() -> None:
    for worker in (a_decoder(Role.PREFILL), a_decoder()):
        worker.begin(0.015)
        worker.fall(silent=False) if worker.info.role is Role.DECODE else None
        assert said(Budgets(SomeCosts()), an_attempt(worker, 0.015)) == []


def test_a_small_step_is_the_most_there_is() -> None:
    worker = a_decoder(step_tokens=100)
    an_attempt(worker, 5.0).fill(0)
    assert said(Budgets(SomeCosts()), an_attempt(worker, 5.0)) == []
    assert worker.budget == 100


def test_where_roles_are_fixed_steps_are_whole() -> None:
    worker, budgets = a_decoder(), Budgets(SomeCosts(), fixed=True)
    an_attempt(worker, 0.015).fill(0)
    assert said(budgets, an_attempt(worker, 0.015)) == []
    assert worker.budget == 8192
