"""A cost model as plain values, and made of them again, for records that outlive the process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from planner.cost import CostModel
from planner.hardware import Device
from planner.model_shape import ModelShape
from planner.precision import Precision
from planner.stacks import Stack


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a cost model is made of."""

    model: ModelShape
    layout: ParallelLayout
    precision: Precision
    device: Device
    stack: Stack
    skew: float


_PARTS = TypeAdapter(_Parts)


def cost_values(cost: CostModel) -> dict[str, Any]:
    """What JSON can hold, with every digit."""
    parts = _Parts(cost.model, cost.layout, cost.precision, cost.device, cost.stack, cost.skew)
    values: dict[str, Any] = _PARTS.dump_python(parts, mode="json")
    return values


def cost_of_values(values: Mapping[str, Any]) -> CostModel:
    """The cost model again. `ConfigError` where these are no values of one."""
    try:
        parts = _PARTS.validate_python(values)
        return CostModel(
            parts.model, parts.layout, parts.precision, parts.device, parts.stack, parts.skew
        )
    except (ValidationError, ArithmeticError, LookupError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, first["loc"])) if first else type(error).__name__
        raise ConfigError(f"no cost model can be made of what is there: {where}") from error
