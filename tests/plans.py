"""Plans for tests, each made once."""

from __future__ import annotations

import functools

from planner.hardware import find_device
from planner.models import find_model
from planner.planning import Plan, Question, plan
from planner.precision import Precision
from planner.split import Targets
from planner.stacks import find_stack
from planner.workload import steady


def question(model: str = "llama-3.1-8b", device: str = "h100-sxm", devices: int = 8) -> Question:
    """Prompts of 2048 tokens and answers of 256, of mixed lengths, within 1 s and 20 ms."""
    return Question(
        find_model(model), find_device(device), Precision.named("fp8"), find_stack("tuned"),
        devices, steady(2048, 256, spread=0.5), Targets(1.0, 0.02),
    )  # fmt: skip


@functools.cache
def dense_plan() -> Plan:
    """Of a dense model on one host."""
    return plan(question())


@functools.cache
def lone_plan() -> Plan:
    """Of a single device, on which nothing can be disaggregated."""
    return plan(question(devices=1))
