"""Measured rows on H200 (aiconfigurator silicon sample, Apache-2.0) and what the planner predicts.

Every second row of an engine, in file order, fitted its stack; the others were held out. Some
recorded layouts contradict themselves, and are read so: of gpt-oss with expert parallelism, tensor
and expert ranks are the same ones (rows recorded as TP16, MoE-TP4, MoE-EP4 equal those of TP4); of
Qwen3, MoE ranks beyond the tensor ranks are data-parallel groups.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eastwest.layout import ParallelLayout
from planner.closed_loop import Latency, closed_loop
from planner.cost import CostModel, Row
from planner.hardware import find_device
from planner.models import find_model
from planner.precision import Precision
from planner.stacks import Stack, find_stack

ROWS = Path(__file__).resolve().parents[2] / "shared/reference/calibration/h200_end_to_end.csv"
_MODELS = {
    "Qwen/Qwen3-235B-A22B-FP8": ("qwen3-235b-a22b", "fp8"),
    "meta-llama/Llama-3.1-70B": ("llama-3.1-70b", "fp8"),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama-3.1-8b", "fp8"),
    "nvidia/Llama-3.1-8B-Instruct-FP8": ("llama-3.1-8b", "fp8"),
    "openai/gpt-oss-120b": ("gpt-oss-120b", "mxfp4"),
}
# What the engines keep KV in for these checkpoints where nobody asks for something else.
_KV = {"trtllm": "fp8", "vllm": "bf16", "sglang": "bf16"}
# Of these lengths, prompts and answers were drawn from 80 to 100 %.
_DRAWN = {1024, 8192}


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One run of a fixed number of clients. held_out: did not fit its engine's stack."""

    model: str
    precision: Precision
    layout: ParallelLayout
    engine: str
    isl: float
    osl: float
    clients: int
    ttft_s: float
    tpot_s: float
    held_out: bool

    def predict(self, stack: Stack | None = None) -> Latency:
        """By the planner's catalogue, or with another stack."""
        cost = CostModel(
            find_model(self.model), self.layout, self.precision, find_device("h200-sxm"),
            stack or find_stack(self.engine),
        )  # fmt: skip
        return closed_loop(cost, self.isl, self.osl, self.clients)


def measured_rows(path: Path = ROWS) -> list[MeasuredRow]:
    """All rows that did not saturate."""
    seen: dict[str, int] = {}
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for fields in csv.DictReader(file):
            if fields["queue_saturated"] == "0":
                at = seen[fields["backend"]] = seen.get(fields["backend"], -1) + 1
                rows.append(_row(fields, held_out=at % 2 == 1))
    return rows


def _row(fields: Mapping[str, str], held_out: bool) -> MeasuredRow:
    model, weights = _MODELS[fields["model"]]
    isl, osl = (int(fields[k]) for k in ("isl", "osl"))
    mean = 0.9 if isl in _DRAWN else 1.0
    return MeasuredRow(
        model,
        Precision.named(weights, _KV[fields["backend"]]),
        _layout(model, fields),
        fields["backend"],
        isl * mean,
        osl * mean,
        int(fields["concurrency"]),
        float(fields["ttft_ms"]) / 1e3,
        float(fields["tpot_ms"]) / 1e3,
        held_out,
    )


def _layout(model: str, fields: Mapping[str, str]) -> ParallelLayout:
    names = ("tp", "attn_dp", "moe_tp", "moe_ep")
    tp, dp, moe_tp, moe_ep = (int(fields[name]) for name in names)
    if model == "gpt-oss-120b":
        ranks = max(moe_tp, moe_ep) if moe_ep > 1 else tp
        return ParallelLayout(tp=ranks, ep=ranks if moe_ep > 1 else 1)
    ranks = max(moe_tp * moe_ep, tp * dp)
    if model == "qwen3-235b-a22b" and ranks > tp:
        return ParallelLayout(tp=tp, dp=ranks // tp, ep=ranks)
    return ParallelLayout(tp=tp)


@dataclass(frozen=True, slots=True)
class Published:
    """Throughput of a large expert-parallel deployment, as its operators published it: tokens per
    second and device of prefill, or of decode at `batch` sequences a device."""

    what: str
    device: str
    precision: Precision
    ranks: int
    batch: int  # 0: prefill
    tokens_per_s: float
    source: str

    def predict(self) -> float:
        """Tokens per second and device of DeepSeek-V3, prompts of 2,000 tokens."""

        cost = CostModel(
            find_model("deepseek-v3"), ParallelLayout(dp=self.ranks, ep=self.ranks),
            self.precision, find_device(self.device), find_stack("tuned"),
        )  # fmt: skip
        if self.batch:
            return self.batch / cost.step([Row(1, 2100, self.batch * self.ranks)]).seconds
        prompts = 8 * self.ranks
        return 2000 * 8 / cost.step([Row(2000, 0, prompts)]).seconds


def published() -> Iterator[Published]:
    """What was not fitted to: other devices, another model, disaggregated, experts over many
    hosts. The last two rows of prefill and decode are of one system under its daily load; of its
    prefill, 56.3 % came from a cache and are left out."""
    fp8 = Precision.named("fp8", "bf16")
    mixed = Precision("fp8", "fp8", "nvfp4", "bf16", "fp8")
    may = "lmsys.org, 2025-05-05, large-scale EP on 96 H100"
    september = "lmsys.org, 2025-09-25, GB200 part II"
    overview = "DeepSeek-V3/R1 inference system overview, 2025-03-01"
    yield Published("H100 EP32 prefill", "h100", fp8, 32, 0, 52300 / 8, may)
    yield Published("H100 EP72 decode", "h100", fp8, 72, 256, 22300 / 8, may)
    yield Published("GB200 EP48 prefill, FP8", "gb200", fp8, 48, 0, 18471, september)
    yield Published("GB200 EP48 decode, FP8", "gb200", fp8, 48, 768, 9087, september)
    yield Published("GB200 EP48 prefill, NVFP4", "gb200", mixed, 48, 0, 26156, september)
    yield Published("GB200 EP48 decode, NVFP4", "gb200", mixed, 48, 1536, 13386, september)
    yield Published("H800 EP32 prefill", "h800", fp8, 32, 0, 73700 / 8 * (1 - 0.563), overview)
    yield Published("H800 EP144 decode", "h800", fp8, 144, 80, 14800 / 8, overview)
