"""Ranks of a simulated group give the tokens of one rank, from shards that each wrote itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from eastwest.layout import KVSpec, ParallelLayout
from eastwest.ports import SampleInput, StepRow
from eastwest.testing.engine import SPEC, SimulatedEngine, expected_output, simulated_group
from eastwest.types import SampledToken, SamplingParams

GREEDY = SamplingParams(temperature=0.0)
LATENT = KVSpec(num_layers=3, num_kv_heads=1, key_dim=6, value_dim=0, dtype="float32")


def run(engines: list[SimulatedEngine], rows: list[StepRow]) -> list[SampledToken | None]:
    with ThreadPoolExecutor(len(engines)) as threads:
        results: list[list[SampledToken | None]] = list(
            threads.map(lambda engine: engine.step(rows), engines)
        )
    return results[engines[0].layout.leader]


@pytest.mark.parametrize(
    ("layout", "spec"),
    [
        (ParallelLayout(), SPEC),
        (ParallelLayout(tp=2, pp=3), SPEC),
        (ParallelLayout(tp=4, pp=2), SPEC),
        (ParallelLayout(tp=2, dp=2), LATENT),
    ],
    ids=str,
)
def test_a_group_computes_what_one_rank_does(layout: ParallelLayout, spec: KVSpec) -> None:
    engines = simulated_group(layout, 8, 4, spec)
    prompts = [[5, 9, 2, 7, 7], [3, 1, 4]]
    rows = [
        StepRow(prompt, 0, blocks, SampleInput(GREEDY, prompt, ()))
        for prompt, blocks in zip(prompts, ([3, 1], [8 * (layout.dp - 1) + 2]), strict=True)
    ]
    tokens = run(engines, rows)
    assert [t.token for t in tokens if t] == [expected_output(p, 1, spec=spec)[0] for p in prompts]
