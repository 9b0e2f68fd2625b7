"""One point SIMULATED: the deployed router, batching and ledgers in virtual time, over workers
whose steps take what the cost model says."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bench.split.load import Load
from bench.split.points import Point, Sample, point_of
from bench.split.splits import Split
from eastwest.clock import seconds
from eastwest.types import Slo
from planner.cost import CostModel
from router.requests import Outcome
from sim.cluster import Seen
from sim.replay import by_cost, cluster_shape, replay

# Prompt tokens of a step; of one that decodes, roles of a conditional split set less.
_STEP_TOKENS, _AGGREGATED_STEP_TOKENS = 2048, 1024


def step_tokens_of(split: Split) -> int:
    """Prompt tokens of a step, at most."""
    return _AGGREGATED_STEP_TOKENS if split.plain_aggregated else _STEP_TOKENS


@dataclass(frozen=True, slots=True)
class SimulatedWorkers:
    """cost: of every worker. requests: of a run, at least; span_s: it lasts at least so long."""

    cost: CostModel
    load: Load
    slo: Slo
    requests: int
    span_s: float

    @property
    def devices(self) -> int:
        """Of one worker."""
        return self.cost.layout.world_size

    def run(self, split: Split, rate: float, seed: int) -> Point:
        """Deterministic."""
        logging.disable(logging.WARNING)
        rows = self.load.rows(rate, max(self.requests, round(rate * self.span_s)), seed)
        shape = cluster_shape(
            self.cost,
            split.replicas,
            step_tokens=step_tokens_of(split),
            router={"conditional": split.conditional},
        )
        asked_s: list[float] = []
        samples: list[Sample] = []

        def observe(seen: Seen) -> None:
            at_s = seconds(seen.request.accepted_ns)
            asked_s.append(at_s)
            if isinstance(outcome := seen.outcome, Outcome):
                marks, usage = outcome.marks, outcome.usage
                timing = marks.timing(marks.first_token_ns)
                samples.append(
                    Sample.of(at_s, timing, usage.prompt_tokens, seen.tokens, usage.computed_tokens)
                )

        seen = replay(rows, shape, by_cost(self.cost), seed=seed, slo=self.slo, observe=observe)
        return point_of(
            split.name, rate, seed,
            asked_s=asked_s, samples=samples, slo=self.slo, busy=seen.busy,
        )  # fmt: skip
