"""Fits the serving engines of `planner/catalogue/stacks.yaml` to half of the measured H200 rows.

``python -m bench.fit_stacks`` prints them as YAML; `bench planner` holds the other half against
them. Starts and factors are what kernels and launches are known to take, so that figures which the
rows say little about stay plausible, and hold for other devices.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.h200_rows import MeasuredRow, measured_rows
from planner.fit import Unknown, fit
from planner.hardware import Device, find_device
from planner.stacks import Stack, find_stack

_FIGURES = {
    "stack.layer_s": Unknown(3e-5, 1e-6, 3e-4, 2.0),
    "stack.sparse_layer_s": Unknown(3e-5, 1e-6, 3e-4, 2.0),
    "stack.step_s": Unknown(5e-4, 1e-6, 2e-2, 2.0),
    "stack.sequence_s": Unknown(5e-6, 1e-7, 2e-4, 2.0),
    "stack.prompt_s": Unknown(2e-3, 1e-5, 3e-2, 1.5),
    "stack.request_s": Unknown(2.5e-2, 1e-3, 1e-1, 1.2),
    "stack.collective_s": Unknown(1e-6, 1e-8, 2e-5, 2.0),
    "stack.matmul": Unknown(1.0, 0.5, 1.3, 1.05),
    "stack.weights": Unknown(1.0, 0.5, 1.3, 1.05),
    "stack.attention": Unknown(1.0, 0.5, 1.6, 1.05),
}
_EXPERTS = {
    "stack.expert_matmul.{}": Unknown(0.3, 0.03, 1.3, 1.2),
    "stack.expert_weights.{}": Unknown(0.7, 0.1, 1.4, 1.15),
}
# TPOT decides splits more often than TTFT, and is measured with less noise.
_TPOT_TIMES = 2


def main() -> None:
    rows = [row for row in measured_rows() if not row.held_out]
    for engine in sorted({row.engine for row in rows}):
        print(_yaml(engine, fit_engine([row for row in rows if row.engine == engine])))


def fit_engine(rows: Sequence[MeasuredRow]) -> Stack:
    """The stack of one engine."""
    formats = sorted({r.precision.experts for r in rows if r.model in ("qwen3-235b-a22b",
                      "gpt-oss-120b")})  # fmt: skip
    unknowns = dict(_FIGURES)
    for dtype in formats:
        unknowns |= {name.format(dtype): figure for name, figure in _EXPERTS.items()}

    def predict(device: Device, stack: Stack) -> list[float]:
        times = []
        for row in rows:
            latency = row.predict(stack)
            times += [latency.ttft_s, *[latency.tpot_s] * _TPOT_TIMES]
        return times

    seconds = [t for row in rows for t in (row.ttft_s, *[row.tpot_s] * _TPOT_TIMES)]
    start = find_stack("tuned").model_copy(update={"expert_matmul": {}, "expert_weights": {}})
    return fit(predict, seconds, find_device("h200-sxm"), start, unknowns).stack


def _yaml(engine: str, stack: Stack) -> str:
    lines = [f"{engine}:"]
    for name, value in stack.model_dump().items():
        if name in ("name", "source", "overlap"):
            continue
        if isinstance(value, dict):
            shown = "{" + ", ".join(f"{k}: {v:.3g}" for k, v in sorted(value.items())) + "}"
        else:
            shown = f"{value:.2e}" if value < 1e-2 else f"{value:.3g}"
        lines.append(f"  {name}: {shown}")
    return "\n".join([*lines, "  source: fitted, half of the H200 rows", ""])


if __name__ == "__main__":
    main()
