"""How many prompt tokens a step may have that decodes: a worker's role, as a number.

A prompt computed beside decoding sequences makes their steps longer, one chunk after the other. So
a worker's budget is the most with which a step is predicted to keep the tightest TPOT target there;
or, where no prompt at all would, what rides along nearly free: a decode step waits for memory, and
some tokens more do not show. A worker that decodes nothing spends whole steps on prompts.
"""

from __future__ import annotations

from eastwest.messages import StepBudget
from eastwest.ports import ServingCosts
from eastwest.types import Role
from router.attempt import Attempt
from router.fleet import Worker
from router.requests import Action

# Budgets that are chosen from, besides whole steps: few, so that a worker is seldom told another.
NOTCHES = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144)
# A step that takes so much of a bare one is nearly free.
_FREE = 1.2


class Budgets:
    """costs: what steps are predicted by. fixed: roles are kept, and steps are whole."""

    def __init__(self, costs: ServingCosts, *, fixed: bool = False) -> None:
        self._costs = costs
        self._fixed = fixed
        self._changed: dict[Worker, None] = {}

    def touch(self, attempt: Attempt | None) -> None:
        """It may have begun, gone on or ended at its workers."""
        if attempt is not None:
            self._changed[attempt.prefill] = self._changed[attempt.decode] = None

    def tell(self, out: list[Action]) -> None:
        """Set the budgets of workers that were touched. They are told even where none of our
        prompts waits: another router's may."""
        changed, self._changed = self._changed, {}
        for worker in changed:
            if worker.info.role is Role.PREFILL or not worker.up:
                continue
            worker.budget = self._of(worker)
            if worker.budget != worker.told_budget:
                worker.told_budget = worker.budget
                out.append(worker.send(StepBudget(worker.budget)))

    def _of(self, worker: Worker) -> int:
        most, target_s = worker.info.step_tokens, worker.tpot_s
        if self._fixed or target_s is None:
            return most
        many, context = worker.decoding_now, worker.context_tokens
        info, costs = worker.info, self._costs
        limit_s = max(target_s, _FREE * costs.step_s(info, many, context))
        notches = [notch for notch in NOTCHES if notch < most]
        low, high = 0, len(notches)
        while low < high:
            middle = (low + high) // 2
            tokens = notches[middle + 1] if middle + 1 < len(notches) else most
            if costs.step_s(info, many, context, tokens) <= limit_s:
                low = middle + 1
            else:
                high = middle
        return notches[low] if low < len(notches) else most
