"""What prompts may have of a step that decodes."""

from __future__ import annotations

from prefill_pool.budget import LEAST_TOKENS, PromptBudget
from prefill_pool.scheduler import Chunk, PromptScheduler


def test_the_least_that_a_router_allows_counts_for_as_long_as_it_is_there() -> None:
    budget = PromptBudget(4096)
    assert budget.tokens == 4096
    budget.allow("a", 512)
    budget.allow("b", 256)
    assert budget.tokens == 256
    budget.allow("b", 1024)
    assert budget.tokens == 512
    budget.forget("a")
    budget.forget("a")
    assert budget.tokens == 1024
    budget.forget("b")
    assert budget.tokens == 4096


def test_no_step_has_more_than_the_engine_takes() -> None:
    budget = PromptBudget(4096)
    budget.allow("a", 1 << 20)
    assert budget.tokens == 4096


def test_no_router_keeps_prompts_from_getting_on() -> None:
    budget = PromptBudget(4096)
    budget.allow("a", 1)
    assert budget.tokens == LEAST_TOKENS
    small = PromptBudget(32)
    small.allow("a", 1)
    assert small.tokens == 32


def test_a_step_with_a_budget_has_that_many_tokens_of_prompts() -> None:
    scheduler = PromptScheduler(4096)
    scheduler.add("a", 100, 0)
    scheduler.add("b", 1000, 200)
    assert scheduler.plan(256) == [Chunk("a", 0, 100), Chunk("b", 200, 356)]
    assert scheduler.plan() == [Chunk("a", 0, 100), Chunk("b", 200, 1000)]
