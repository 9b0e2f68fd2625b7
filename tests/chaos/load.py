"""A constant load of streams with known outputs, over several routers, and what became of each.

Every token is checked as it comes. A stream ends with all of its output, or with one typed error
that a storm may cause; anything else fails the test.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

from eastwest.answers import Completion
from eastwest.client import AsyncClient
from eastwest.errors import EastWestError, ErrorCode
from eastwest.testing.checkers import ExactlyOnce
from eastwest.testing.engine import expected_output
from tests.chaos.world import ROUTERS, World

OUTPUT_MAX = 120
TURN_OUTPUT_MAX = 30
# What a storm may end a stream with: all of them say that another attempt may do.
ALLOWED = {ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED}


class Load:
    """So many clients, each with one stream at a time, until `stop`. All have prompts from one
    list and tenants of their own, so that outputs are known and no KV is shared.

    ended: endings by router and kind.
    """

    def __init__(self, world: World, rng: random.Random, clients: int) -> None:
        self._world = world
        self._rng = rng
        self._prompts = [[1 + rng.randrange(510) for _ in range(n)] for n in range(5, 85, 5)]
        self._outputs = [expected_output(prompt, OUTPUT_MAX) for prompt in self._prompts]
        self._outputs_of: dict[str, list[Sequence[int]]] = {}
        self._stopping = False
        self._begun = 0
        self._tasks = [asyncio.create_task(self._client()) for _ in range(clients)]
        self.exactly_once = ExactlyOnce(self._expect)
        self.ended: Counter[tuple[str, str]] = Counter()

    async def stop(self) -> None:
        """No new streams; raises what was wrong with any."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self.exactly_once.check_all_ended()

    async def one(self, router: str, *, turns: int = 1) -> EastWestError | None:
        """A conversation of so many requests, the first at `router`; how it failed, if it did."""
        tenant = self._name()
        histories: list[list[int]] = [[]]
        for turn in range(turns):
            choice = self._rng.randrange(len(self._prompts))
            prompt = self._prompts[choice]
            outputs: list[Sequence[int]] = [self._outputs[choice]]
            count = self._rng.randrange(2, OUTPUT_MAX if turns == 1 else TURN_OUTPUT_MAX)
            # Without the store, a session goes on from what the router itself knows of it.
            outputs += [expected_output([*h, *prompt], count) for h in histories if h]
            name = f"{tenant}.{turn}"
            self._outputs_of[name] = outputs
            self.exactly_once.accepted(name)
            try:
                async with self._world.client(router, tenant=tenant) as client:
                    completion = await self._stream(client, name, prompt, count, turns > 1)
            except EastWestError as error:
                self.exactly_once.failed(name)
                self.ended[router, error.code.value] += 1
                if error.code not in ALLOWED:
                    raise AssertionError(f"{name} at router {router} must not fail so") from error
                return error
            self.exactly_once.completed(name, completion.token_ids)
            assert len(completion.token_ids) == count, f"{name} ended early"
            self.ended[router, "completed"] += 1
            given = completion.usage.prompt_tokens - len(prompt)
            history = next(h for h in histories if len(h) == given)
            histories.append([*history, *prompt, *completion.token_ids])
            router = self._rng.choice(ROUTERS)
        return None

    async def _stream(
        self, client: AsyncClient, name: str, prompt: Sequence[int], count: int, session: bool
    ) -> Completion:
        generation = client.generate(
            prompt, temperature=0.0, max_tokens=count, ignore_eos=True,
            session="s" if session else None,
        )  # fmt: skip
        position = 0
        async for chunk in generation:
            tokens = list(chunk.token_ids)
            there = slice(position, position + len(tokens))
            position += len(tokens)
            possible = [o for o in self._outputs_of[name] if list(o[there]) == tokens]
            self._outputs_of[name] = possible or self._outputs_of[name][:1]
            self.exactly_once.delivered(name, tokens)
        return await generation

    async def _client(self) -> None:
        while not self._stopping:
            if await self.one(self._rng.choice(ROUTERS), turns=self._rng.choice((1, 1, 1, 3))):
                await asyncio.sleep(0.05)  # a refused client comes back, and not at once

    def _name(self) -> str:
        self._begun += 1
        return f"t{self._begun}"

    def _expect(self, name: str, position: int) -> int:
        return self._outputs_of[name][0][position]
