"""The steps that a split's pools run: what each computes and moves, where its time goes, and what
the device would allow.

A step is counted by the cost model itself, on a device that does one operation and moves one byte
a second: there, seconds are counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.closed_loop import chunks
from planner.cost import CostModel, Row, StepCost
from planner.hardware import Device, Efficiency
from planner.planning import Question
from planner.precision import BITS, multiplied_in
from planner.split import Mode, Pool, Split
from planner.stacks import Stack
from planner.workload import RequestClass


@dataclass(frozen=True, slots=True)
class Work:
    """What a step asks of one device (of each stage, summed): arithmetic, and bytes to and from its
    memory."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes


@dataclass(frozen=True, slots=True)
class PoolStep:
    """One step of a replica of `pool`. kind: ``prefill``, ``decode``, or ``mixed`` where a prompt
    rides with the sequences that decode."""

    pool: Pool
    kind: str
    cost: StepCost
    work: Work

    @property
    def flops_per_s(self) -> float:
        """What one device reaches over the whole step, waiting included."""
        return self.work.flops / self.cost.seconds


@dataclass(frozen=True, slots=True)
class Roof:
    """What one device allows in number formats of one rate: ``min(flops_per_s, bytes_per_s * I)``
    at I FLOPs a byte.

    used: whether the model's weights are multiplied in one of them. reached: the same roof, as
    measured kernels of the stack reach it; None of itself.
    """

    dtypes: tuple[str, ...]
    used: bool
    flops_per_s: float
    bytes_per_s: float
    reached: Roof | None = None

    @property
    def ridge(self) -> float:
        """FLOPs a byte from which on arithmetic, not memory, is the limit."""
        return self.flops_per_s / self.bytes_per_s

    def at(self, intensity: float) -> float:
        """FLOP/s that are allowed at an intensity."""
        return min(self.flops_per_s, self.bytes_per_s * intensity)


def typical_steps(question: Question, split: Split) -> tuple[PoolStep, ...]:
    """For each pool the steps it spends its time on: a whole chunk of mean prompts, and the mean
    batch at the mean context."""
    workload = question.workload
    aggregated = split.mode is Mode.AGGREGATED
    local = [c for c in workload.classes if aggregated or c.fresh <= split.local_tokens]
    remote = [c for c in workload.classes if c not in local]
    steps = []
    for pool in split.pools:
        if not pool.batch:
            steps.append(_step(question, pool, "prefill", [_prompts(remote, pool, alone=True)]))
            continue
        micro_batches = min(pool.layout.pp, max(1, int(pool.batch)))
        decoding = Row(1, workload.context, pool.batch / micro_batches)
        if local:
            rows = [decoding, _prompts(local, pool, alone=False)]
            steps.append(_step(question, pool, "mixed", rows))
        steps.append(_step(question, pool, "decode", [decoding]))
    return tuple(steps)


def work_of(cost: CostModel, rows: Sequence[Row]) -> Work:
    """What a step of `rows` asks of the busiest device of each stage."""
    counting = CostModel(
        cost.model, cost.layout, cost.precision, _counting(cost.device), _PLAIN, cost.skew
    )
    parts = counting.step(rows).parts
    return Work(sum(p.compute_s for p in parts), sum(p.memory_s for p in parts))


def roofs(question: Question) -> tuple[Roof, ...]:
    """Roofs of the device, highest first; formats of equal rate share one."""
    device, stack, precision = question.device, question.stack, question.precision
    weights = {precision.attention, precision.ffn, precision.head}
    if question.model.experts is not None:
        weights.add(precision.experts)
    used = {multiplied_in(dtype, device.flops_per_s) for dtype in weights}
    by_rate: dict[float, list[str]] = {}
    for dtype, rate in device.flops_per_s.items():
        by_rate.setdefault(rate, []).append(dtype)
    bandwidth = device.memory.bytes_per_s
    found = []
    for rate, dtypes in sorted(by_rate.items(), reverse=True):
        first = next((dtype for dtype in dtypes if dtype in used), dtypes[0])
        reached = Roof(
            (first,),
            first in used,
            rate * device.share("matmul", first) * stack.matmul,
            bandwidth * device.share("weights", first) * stack.weights,
        )
        found.append(Roof(tuple(dtypes), first in used, rate, bandwidth, reached))
    return tuple(found)


def _step(question: Question, pool: Pool, kind: str, rows: Sequence[Row]) -> PoolStep:
    q = question
    cost = CostModel(q.model, pool.layout, q.precision, q.device, q.stack, q.skew)
    return PoolStep(pool, kind, cost.step(rows), work_of(cost, rows))


def _prompts(classes: Sequence[RequestClass], pool: Pool, *, alone: bool) -> Row:
    """The middle chunk of a mean prompt in each group; alone, as many short prompts as the chunk
    holds."""
    total = sum(c.share for c in classes)
    fresh = sum(c.fresh * c.share for c in classes) / total
    cached = sum(c.cached * c.share for c in classes) / total
    together = max(1, int(pool.chunk_tokens // fresh)) if alone else 1
    rows = chunks(fresh, pool.chunk_tokens)
    middle = rows[(len(rows) - 1) // 2]
    return Row(middle.new, middle.past + cached, pool.layout.dp * together, middle.samples)


def _counting(device: Device) -> Device:
    """One FLOP and one byte a second, in the number formats of `device`."""
    return device.model_copy(
        update={
            "flops_per_s": dict.fromkeys(device.flops_per_s, 1.0),
            "memory": device.memory.model_copy(update={"bytes_per_s": 1.0}),
            "efficiency": Efficiency(),
        }
    )


# A stack that adds nothing and reaches all.
_PLAIN = Stack(
    name="plain",
    layer_s=0.0,
    expert_matmul=dict.fromkeys(BITS, 1.0),
    expert_weights=dict.fromkeys(BITS, 1.0),
)
