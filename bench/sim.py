"""How fast a cluster is simulated, with the scheduler and workers that are deployed.

chaos: storms by seed, in scheduler events a second. trace: an hour of the Mooncake conversation
trace (where it lies beside the project) over 32 workers, Llama-3.1-70B on four H100 each. An event
is what the scheduler is told at once: a decode step of a worker is one, however many tokens it has.
"""

from __future__ import annotations

import logging
import resource
import time
from pathlib import Path
from typing import Any

from eastwest.layout import ParallelLayout
from eastwest.types import Role
from planner.cost import CostModel
from planner.hardware import find_device
from planner.models import find_model
from planner.precision import Precision
from planner.stacks import find_stack
from planner.traces import read_trace
from sim.chaos import run_seed, summary
from sim.replay import by_cost, cluster_shape, replay

TRACE = Path(__file__).resolve().parents[2] / "shared/reference/traces/mooncake_conversation.jsonl"
EVENTS_GOAL = 50_000
HOUR_GOAL_S = 60.0
_QUICK_ROWS = 600


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    return [*_chaos(60 if quick else 400), *_trace(quick)]


def _chaos(seeds: int) -> list[dict[str, Any]]:
    logging.disable(logging.CRITICAL)
    begun = time.perf_counter()
    total = summary([run_seed(seed) for seed in range(seeds)])
    spent = time.perf_counter() - begun
    logging.disable(logging.NOTSET)
    rate = total.events / spent
    return [
        _row(f"storms, {seeds} seeds", seeds / spent, "seeds/s"),
        _row("storms, scheduler events", rate, "events/s", EVENTS_GOAL, rate >= EVENTS_GOAL),
        _row("storms, virtual time", total.virtual_s / spent, "times real time"),
    ]


def _trace(quick: bool) -> list[dict[str, Any]]:
    if not TRACE.exists():
        return [_row("an hour of the Mooncake trace over 32 workers", None, "s", HOUR_GOAL_S)]
    rows = read_trace(TRACE).rows
    cost = CostModel(
        find_model("llama-3.1-70b"), ParallelLayout(tp=4), Precision.named("fp8", "fp8"),
        find_device("h100-sxm"), find_stack("tuned"),
    )  # fmt: skip
    shape = cluster_shape(cost, ((Role.PREFILL, 28), (Role.DECODE, 4)))
    part = rows[:_QUICK_ROWS] if quick else rows
    begun = time.perf_counter()
    seen = replay(part, shape, by_cost(cost))
    spent = time.perf_counter() - begun
    hour = spent * len(rows) / len(part)
    what = f"from {len(part)} requests" if quick else f"{len(part):,} requests"
    return [
        _row(f"an hour of the Mooncake trace over 32 workers, {what}", hour, "s", HOUR_GOAL_S,
             hour <= HOUR_GOAL_S),
        _row("the trace, scheduler events", seen.events / spent, "events/s"),
        _row("the trace, tokens", sum(r.osl for r in part) / spent, "tokens/s"),
        _row("the trace, virtual time", seen.span_s / spent, "times real time"),
        _row("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"),
    ]  # fmt: skip


def _row(
    metric: str, value: float | None, unit: str, goal: object = None, met: bool | None = None
) -> dict[str, Any]:
    return {
        "metric": metric, "value": value, "unit": unit, "against": "", "against_value": None,
        "ratio": None, "goal": goal, "met": met,
    }  # fmt: skip
