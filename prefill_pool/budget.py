"""What prompts may have of a step that decodes, as routers allow it."""

from __future__ import annotations

# Whatever a router says, prompts get on.
LEAST_TOKENS = 64


class PromptBudget:
    """Routers see the same worker with different eyes: the least that one of them allows counts."""

    def __init__(self, step_tokens: int) -> None:
        """step_tokens: the most prompt tokens of any step."""
        self._step_tokens = step_tokens
        self._allowed: dict[str, int] = {}
        self.tokens = step_tokens

    def allow(self, router_id: str, tokens: int) -> None:
        """A router's word, in place of its former one."""
        self._allowed[router_id] = tokens
        self._follow()

    def forget(self, router_id: str) -> None:
        """The router is gone. Idempotent."""
        self._allowed.pop(router_id, None)
        self._follow()

    def _follow(self) -> None:
        allowed = min(self._allowed.values(), default=self._step_tokens)
        self.tokens = min(max(allowed, LEAST_TOKENS), self._step_tokens)
