"""The router's placement policies on the same trace, SIMULATED with the deployed scheduler and
workers; and what one placement costs.

The trace is Mooncake's conversations (where it lies beside the project), faster than recorded, on
Llama-3.1-70B replicas of four H100 each. A deployment whose prefill pool is nearly idle says little
about policies: one has enough of it, one too little. TTFT within 2 s, TPOT within 100 ms.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eastwest.config import RouterConfig
from eastwest.layout import ParallelLayout
from eastwest.testing.builders import a_worker
from eastwest.types import Role, SamplingParams, Slo
from planner.cost import CostModel
from planner.hardware import find_device
from planner.models import find_model
from planner.precision import Precision
from planner.serving import PlannedCosts
from planner.stacks import find_stack
from planner.traces import TraceRow, read_trace
from router.fleet import Worker
from router.pace import Pace
from router.policies import policy_of
from router.requests import Request
from sim.replay import by_cost, cluster_shape, replay

TRACE = Path(__file__).resolve().parents[2] / "shared/reference/traces/mooncake_conversation.jsonl"
TARGETS = Slo(ttft_s=2.0, tpot_s=0.1)
SPEED = 1.6
DEPLOYMENTS = {"5P3D": (5, 3), "3P3D": (3, 3)}
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "round_robin": {"policy": "round_robin"},
    "least_loaded": {"policy": "least_loaded"},
    "power_of_two": {"policy": "power_of_two"},
    "prefix": {"policy": "prefix"},
    "cost, not conditional": {"policy": "cost", "conditional": False},
    "cost": {"policy": "cost"},
}
_ROWS, _QUICK_ROWS = 3000, 500
_WORKERS = 64


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    logging.disable(logging.CRITICAL)
    cost = CostModel(
        find_model("llama-3.1-70b"), ParallelLayout(tp=4), Precision.named("fp8", "fp8"),
        find_device("h100-sxm"), find_stack("tuned"),
    )  # fmt: skip
    results = [row for name in POLICIES for row in _placement(name, cost)]
    if not TRACE.exists():
        return [*results, _row("policies on the Mooncake trace", None, "")]
    rows = read_trace(TRACE).rows[: _QUICK_ROWS if quick else _ROWS]
    for deployment in DEPLOYMENTS:
        results += _deployment(deployment, cost, rows)
    return results


def _deployment(name: str, cost: CostModel, rows: tuple[TraceRow, ...]) -> list[dict[str, Any]]:
    """Each policy against the default of the field, least loaded."""
    prefill, decode = DEPLOYMENTS[name]
    roles = ((Role.PREFILL, prefill), (Role.DECODE, decode))
    seen = {
        policy: replay(rows, cluster_shape(cost, roles, router=router), by_cost(cost), speed=SPEED)
        for policy, router in POLICIES.items()
    }
    base = seen["least_loaded"]
    results = []
    for policy, run_ in seen.items():
        what = f"{name}, {policy}"
        attained = run_.attained(TARGETS.ttft_s, TARGETS.tpot_s)
        results += [
            _row(f"{what}: within both targets", attained, "of requests",
                 base.attained(TARGETS.ttft_s, TARGETS.tpot_s)),
            _row(f"{what}: TTFT mean", run_.ttft_mean_s, "s", base.ttft_mean_s),
            _row(f"{what}: TPOT p90", 1e3 * run_.percentile("tpot_s", 0.9), "ms",
                 1e3 * base.percentile("tpot_s", 0.9)),
            _row(f"{what}: prompt tokens found in caches", run_.cached_share, "of all",
                 base.cached_share),
        ]  # fmt: skip
    return results


class _Known:
    """A cached prefix here and there."""

    waiting = 10
    now_ns = 0

    def cached_tokens(self, worker: Worker) -> int:
        return 512 * (hash(worker.worker_id) % 5)

    def stored_tokens(self, worker: Worker) -> int:
        return 0

    def loan(self, worker: Worker) -> None:
        return None

    def reusable_tokens(self, worker: Worker) -> int:
        return self.cached_tokens(worker)


def _placement(name: str, cost: CostModel) -> list[dict[str, Any]]:
    """Microseconds of one placement over 64 workers that differ in load."""
    rng = random.Random(1)
    workers = []
    for index in range(_WORKERS):
        role = Role.PREFILL if index % 2 else Role.DECODE
        worker = Worker(a_worker(f"w{index:02}", role, step_tokens=8192, num_blocks=1 << 16), 0)
        worker.prompt_tokens = rng.randrange(16_000) if index % 2 else 0
        worker.sequences = 0 if index % 2 else rng.randrange(1, 60)
        worker.context_tokens = worker.sequences * rng.randrange(500, 8000)
        workers.append(worker)
    config = RouterConfig.model_validate(POLICIES[name])
    policy = policy_of(config, Pace(PlannedCosts(lambda worker: cost)))
    sampling = SamplingParams(temperature=0.0, seed=0)
    base = Request("r", "", "", (), sampling, 200, 0, 1 << 60, slo=TARGETS)
    requests = [replace(base, prompt=tuple(range(rng.randrange(100, 20_000)))) for _ in range(400)]
    for request in requests:
        policy.place(request, workers, _Known())
    begun = time.process_time()
    for request in requests:
        policy.place(request, workers, _Known())
    each = (time.process_time() - begun) / len(requests)
    return [_row(f"a placement over {_WORKERS} workers, {name}", 1e6 * each, "us")]


def _row(
    metric: str, value: float | None, unit: str, least_loaded: float | None = None
) -> dict[str, Any]:
    ratio = value / least_loaded if value is not None and least_loaded else None
    return {
        "metric": metric, "value": value, "unit": unit,
        "against": "" if least_loaded is None else "least_loaded", "against_value": least_loaded,
        "ratio": ratio, "goal": None, "met": None,
    }  # fmt: skip
