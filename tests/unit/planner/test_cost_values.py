"""A cost model survives being written down: what is made of its values takes the same time."""

from __future__ import annotations

import json

import pytest

from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from planner.cost import CostModel, Row
from planner.cost_values import cost_of_values, cost_values
from planner.hardware import find_device
from planner.models import find_model
from planner.precision import Precision
from planner.stacks import find_stack

ROWS = [Row(1, 700, 9), Row(300, 41, samples=False)]


@pytest.mark.parametrize("model", ["llama-3.1-8b", "deepseek-v3", "gpt-oss-120b"])
@pytest.mark.parametrize("device", ["h100-sxm", "gb200-nvl72"])
def test_the_same_to_the_last_digit(model: str, device: str) -> None:
    layout, precision = ParallelLayout(tp=2, dp=2, ep=4), Precision.named("fp8")
    stack = find_stack("tuned")
    cost = CostModel(find_model(model), layout, precision, find_device(device), stack, skew=1.3)
    again = cost_of_values(json.loads(json.dumps(cost_values(cost))))
    assert again.step(ROWS) == cost.step(ROWS)
    assert cost_values(again) == cost_values(cost)


def test_what_is_no_cost_model_is_told() -> None:
    with pytest.raises(ConfigError, match="no cost model can be made of what is there: model"):
        cost_of_values({"model": 3})
