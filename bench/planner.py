"""How far the planner's predictions are from measurements, and how fast it plans.

Errors are medians of ``|predicted / measured - 1|``. Held-out rows did not fit anything; the
published deployments are of other devices, another model and another way of serving. The peer is
AIConfigurator's planner, as a command in its own environment (``AICONFIGURATOR`` names it).
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.h200_rows import ROWS, MeasuredRow, measured_rows, published

TPOT_GOAL = 0.10
TTFT_GOAL = 0.20
_OURS = (
    "plan", "--model", "llama-3.1-70b", "--hardware", "h100-sxm", "--gpus", "32", "--isl", "4000",
    "--osl", "500", "--ttft", "600ms", "--tpot", "16.67ms", "--stack", "vllm",
)  # fmt: skip
_THEIRS = (
    "cli", "default", "--model-path", "meta-llama/Meta-Llama-3.1-70B", "--total-gpus", "32",
    "--system", "h100_sxm", "--backend", "vllm", "--isl", "4000", "--osl", "500", "--ttft", "600",
    "--tpot", "16.67",
)  # fmt: skip
_RACK = (
    "plan", "--model", "deepseek-v3", "--hardware", "gb200-nvl72", "--gpus", "72", "--isl", "8192",
    "--osl", "1024", "--ttft", "2s", "--tpot", "20ms",
)  # fmt: skip


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    rows = [*_errors(), *_deployments(), *_speed(1 if quick else 5)]
    return rows


def _errors() -> list[dict[str, Any]]:
    if not ROWS.exists():
        return [_row("TPOT and TTFT on H200", None, "", "measured rows", None)]
    held_out = [row for row in measured_rows() if row.held_out]
    groups = {"all": held_out}
    for row in held_out:
        groups.setdefault(f"{row.engine}, {row.model}", []).append(row)
    results = []
    for name, group in groups.items():
        tpot, ttft = (statistics.median(errors) for errors in zip(*map(_of, group), strict=True))
        goals = (TPOT_GOAL, TTFT_GOAL) if name == "all" else (None, None)
        for what, error, goal in (("TPOT", tpot, goals[0]), ("TTFT", ttft, goals[1])):
            results.append(
                _row(
                    f"{what} error on H200, {name} ({len(group)} rows)",
                    error,
                    "median |error|",
                    "measured rows",
                    None,
                    goal,
                    None if goal is None else error <= goal,
                )
            )
    return results


def _of(row: MeasuredRow) -> tuple[float, float]:
    predicted = row.predict()
    return abs(predicted.tpot_s / row.tpot_s - 1), abs(predicted.ttft_s / row.ttft_s - 1)


def _deployments() -> list[dict[str, Any]]:
    return [
        _row(p.what, p.predict(), "tokens/s/device", p.source, p.tokens_per_s) for p in published()
    ]


def _speed(rounds: int) -> list[dict[str, Any]]:
    ours = [sys.executable, "-m", "deploy.cli"]
    peer = shutil.which(os.environ.get("AICONFIGURATOR", "aiconfigurator"))
    mine, theirs, rack = [], [], []
    for _ in range(rounds):
        mine.append(_timed([*ours, *_OURS]))
        rack.append(_timed([*ours, *_RACK]))
        if peer is not None:
            theirs.append(_timed([peer, *_THEIRS]))
    other = statistics.median(theirs) if theirs else None
    return [
        _row("plan for 32 H100", statistics.median(mine), "s", "AIConfigurator", other),
        _row(
            "plan for 72 GB200", statistics.median(rack), "s", "", None, "5",
            statistics.median(rack) < 5,
        ),
    ]  # fmt: skip


def _timed(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def _row(
    metric: str,
    value: float | None,
    unit: str,
    against: str,
    against_value: float | None,
    goal: object = None,
    met: bool | None = None,
) -> dict[str, Any]:
    ratio = None if value is None or not against_value else value / against_value
    return {
        "metric": metric, "value": value, "unit": unit, "against": against,
        "against_value": against_value, "ratio": ratio, "goal": goal, "met": met,
    }  # fmt: skip
