"""Roles as budgets against the pure forms, SIMULATED: goodput by targets.

Four H100 serve Llama-3.1-8B, one replica each; prompts of about 1,024 tokens (log-normal, sigma
0.8), answers of 128, Poisson arrivals. Goodput is the rate at which 90 % of requests meet both
targets. For each pair of targets each form is tuned on some seeds, and measured on others:
aggregated workers with the best fixed chunk, disaggregated pools with the best split, and workers
with budgets (`router.budgets`) with the best mixture of roles and most tokens of a step. The pure
forms are corners of what budgets can be: so where no mixture does better on the seeds for tuning by
more than the search can tell apart, the better of them is what a planner takes. All have the same
router and cost model.
"""

from __future__ import annotations

import logging
import math
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from eastwest.layout import ParallelLayout
from eastwest.types import Role, Slo
from planner.cost import CostModel
from planner.hardware import find_device
from planner.models import find_model
from planner.precision import Precision
from planner.stacks import find_stack
from planner.traces import TraceRow
from sim.replay import by_cost, cluster_shape, replay

A, P, D = Role.AGGREGATED, Role.PREFILL, Role.DECODE


@dataclass(frozen=True, slots=True)
class Form:
    """A deployment. step_tokens: most prompt tokens of a step; budgets: whether less may be."""

    roles: tuple[tuple[Role, int], ...]
    step_tokens: int
    budgets: bool


FORMS: Mapping[str, Mapping[str, Form]] = {
    "aggregated": {
        f"4A, chunks of {chunk}": Form(((A, 4),), chunk, budgets=False)
        for chunk in (512, 1024, 2048)
    },
    "disaggregated": {
        f"{count}P{4 - count}D": Form(((P, count), (D, 4 - count)), 2048, budgets=False)
        for count in (1, 2, 3)
    },
    "budgets": {
        "4A, at most 1024": Form(((A, 4),), 1024, budgets=True),
        "4A, at most 2048": Form(((A, 4),), 2048, budgets=True),
        "4A, at most 8192": Form(((A, 4),), 8192, budgets=True),
        "1P3A": Form(((P, 1), (A, 3)), 2048, budgets=True),
        "1P3D": Form(((P, 1), (D, 3)), 2048, budgets=True),
        "2P2D": Form(((P, 2), (D, 2)), 2048, budgets=True),
        "3P1D": Form(((P, 3), (D, 1)), 2048, budgets=True),
    },
}
TTFT_S, TPOT_S = (0.15, 0.5, 2.0), (0.008, 0.009, 0.012, 0.02, 0.04)
QUICK = ((0.5, 0.012),)
_ISL, _SIGMA, _OSL = 1024, 0.8, 128
_SHARE = 0.9
_TUNED_ON, _MEASURED_ON = (1, 4), (2, 3)
# Factors to which goodput is searched, and by which a mixture has to be better than a pure form.
_TUNED_TO, _MEASURED_TO, _BETTER = 1.06, 1.03, 1.04
# Requests a second: the least that is tried, and where the first search begins.
_LOW, _GUESS = 2.0, 32.0
# Long against the longest TTFT target, so that a queue that only grows shows.
_SPAN_S, _REQUESTS_MIN = 8.0, 200


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    cells = QUICK if quick else tuple((ttft, tpot) for ttft in TTFT_S for tpot in TPOT_S)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [row for rows in pool.map(_cell, cells, [quick] * len(cells)) for row in rows]


def _cell(targets: tuple[float, float], quick: bool) -> list[dict[str, Any]]:
    """One pair of targets."""
    logging.disable(logging.CRITICAL)
    slo, span_s = Slo(*targets), 2.0 if quick else _SPAN_S
    what = f"TTFT {targets[0]:g} s, TPOT {1e3 * targets[1]:g} ms"
    measured: dict[str, tuple[float, str]] = {}
    best = 0.0, "", ""
    for form, variants in FORMS.items():
        tuned = {
            name: _mean(variant, slo, span_s, _TUNED_ON, _TUNED_TO)
            for name, variant in variants.items()
        }
        name = max(tuned, key=tuned.__getitem__)
        if form == "budgets" and tuned[name] <= _BETTER * best[0]:
            measured[form] = measured[best[1]]
            continue
        measured[form] = _mean(variants[name], slo, span_s, _MEASURED_ON, _MEASURED_TO), name
        best = max(best, (tuned[name], form, name))
    ours, ours_is = measured.pop("budgets")
    rival, (theirs, theirs_is) = max(measured.items(), key=lambda item: item[1][0])
    other = next(form for form in measured if form != rival)
    least, least_is = measured[other]
    ratio = ours / theirs if theirs else None
    against = f"{rival}, {theirs_is}"
    return [
        {
            "metric": f"goodput at {what}: budgets, {ours_is}", "value": ours,
            "unit": "requests/s", "against": against, "against_value": theirs, "ratio": ratio,
            "goal": 1.0, "met": None if ratio is None else ratio >= 1.0,
        },
        {
            "metric": f"goodput at {what}: {other}, {least_is}", "value": least,
            "unit": "requests/s", "against": against, "against_value": theirs,
            "ratio": least / theirs if theirs else None, "goal": None, "met": None,
        },
    ]  # fmt: skip


def _mean(form: Form, slo: Slo, span_s: float, seeds: Sequence[int], within: float) -> float:
    """Goodput over seeds. What one has found is where the search for the next begins."""
    rates: list[float] = []
    for seed in seeds:
        rates.append(goodput(form, slo, span_s, seed, within, rates[-1] if rates else _GUESS))
    return statistics.fmean(rates)


def goodput(form: Form, slo: Slo, span_s: float, seed: int, within: float, guess: float) -> float:
    """Requests a second, to a factor of `within`; 0 where even the lowest rate is too high."""
    low, high = 0.0, math.inf
    rate, stride = max(guess, _LOW), within * within
    while low == 0.0 or high / low > within:
        if attained(form, slo, span_s, seed, rate) < _SHARE:
            high = rate
        else:
            low = rate
        if rate == high == _LOW:
            return 0.0
        if low == 0.0:
            rate = max(_LOW, high / stride)
        elif high == math.inf:
            rate = low * stride
        else:
            rate = math.sqrt(low * high)
        stride *= stride
    return low


def attained(form: Form, slo: Slo, span_s: float, seed: int, rate: float) -> float:
    """Share of requests that meet both targets, of those that come within `span_s`."""
    cost = CostModel(
        find_model("llama-3.1-8b"), ParallelLayout(), Precision.named("bf16", "bf16"),
        find_device("h100-sxm"), find_stack("tuned"),
    )  # fmt: skip
    shape = cluster_shape(
        cost, form.roles, step_tokens=form.step_tokens, router={"conditional": form.budgets}
    )
    rows = trace(rate, max(_REQUESTS_MIN, round(rate * span_s)), seed)
    seen = replay(rows, shape, by_cost(cost), seed=seed, slo=slo)
    return seen.attained(slo.ttft_s, slo.tpot_s)


def trace(rate: float, requests: int, seed: int) -> list[TraceRow]:
    """So many requests a second, of the workload above."""
    rng, at_s, rows = random.Random(seed), 0.0, []
    for _ in range(requests):
        at_s += rng.expovariate(rate)
        isl = _ISL * math.exp(rng.gauss(-(_SIGMA**2) / 2, _SIGMA))
        rows.append(TraceRow(min(8192, max(32, round(isl))), _OSL, at_s))
    return rows
