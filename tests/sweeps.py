"""A sweep of splits, as it is written: one is best, one serves less, one serves nothing."""

from __future__ import annotations

import json
from typing import Any

from bench.split.points import PERCENTILES, Point
from bench.split.report import as_tree
from bench.split.splits import split_of
from bench.split.sweep import Found
from bench.split.written import Sweep


def a_point(split: str, rate: float, attained: float, seed: int = 0) -> Point:
    ttft_s = tuple(0.1 + 0.2 * share for share in PERCENTILES)
    tpot_s = tuple(0.01 + 0.001 * share for share in PERCENTILES)
    parts = (0.01, 0.05, 0.02, 0.1, 0.02)
    return Point(
        split, rate, seed, 40, 0, attained, 1 - attained, 0.0, ttft_s, tpot_s, parts,
        0.001, 0.0, 100.0 * rate, {"prefill": 0.9},
    )  # fmt: skip


def a_sweep(**measured: Any) -> Sweep:
    found = [
        Found(split_of("2A"), (8.0, 9.0), (
            a_point("2A", 8.0, 0.95), a_point("2A", 9.0, 0.5), a_point("2A", 9.0, 0.9, 1),
        )),
        Found(split_of("1P1D+"), (12.0,), (a_point("1P1D+", 12.0, 0.92),)),
        Found(split_of("1P1D"), (0.0,), (a_point("1P1D", 1.0, 0.1),)),
    ]  # fmt: skip
    options = {
        "slo": {"ttft_s": 0.3, "tpot_s": 0.02}, "share": 0.9, "within": 1.1, **measured
    }  # fmt: skip
    return Sweep.model_validate_json(json.dumps(as_tree(found, options, 2, {"2A": 9.0})))
