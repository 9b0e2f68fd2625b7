"""Fits figures of a device and of a serving engine to times that were measured.

Which figures is a mapping from their names to where they may lie: ``device.efficiency.kv.bf16``,
``stack.layer_s``. What is compared with the times is any prediction from a device and a stack:
steps of the cost model here, latencies of a served load elsewhere. Nothing is measured here.

With predictions p_i of times t_i, figures x_j, their starts s_j and factors f_j, this minimises

    sum_i rho(ln(p_i / t_i) / TOLERANCE) + sum_j rho(ln(x_j / s_j) / ln f_j)

where rho(z) = 2 (sqrt(1 + z^2) - 1) (soft L1): outliers count by their size and not its square,
and a figure that the times say nothing about stays where it began.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from eastwest.errors import ConfigError, InvalidArgument
from eastwest.layout import ParallelLayout
from planner.cost import CostModel, Row
from planner.hardware import Device
from planner.model_shape import ModelShape
from planner.precision import Precision, multiplied_in
from planner.stacks import Stack

# An error of this size in one time weighs as much as a figure that is off by its factor.
TOLERANCE = 0.03
_EVALUATIONS_MAX = 400

Predict = Callable[[Device, Stack], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A figure to find: from `low` to `high`, thought to be within `factor` of `start`, either
    way. All above 0; factor above 1."""

    start: float
    low: float
    high: float
    factor: float = 10.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine step that was run, and how long it took."""

    rows: tuple[Row, ...]
    seconds: float

    @property
    def kind(self) -> str:
        """decode, prefill or mixed."""
        prompts = [row.new > 1 for row in self.rows]
        return "prefill" if all(prompts) else "mixed" if any(prompts) else "decode"


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was found. values: of the figures, by name. predicted_s: with them, one for each
    time."""

    device: Device
    stack: Stack
    values: Mapping[str, float]
    seconds: tuple[float, ...]
    predicted_s: tuple[float, ...]

    @property
    def errors(self) -> tuple[float, ...]:
        """Of each time: predicted / measured - 1."""
        pairs = zip(self.predicted_s, self.seconds, strict=True)
        return tuple(predicted / measured - 1 for predicted, measured in pairs)


@dataclass(frozen=True, slots=True)
class Spread:
    """Sizes of errors, signs aside."""

    count: int
    median: float
    p90: float

    @staticmethod
    def of(errors: Sequence[float]) -> Spread:
        """Of at least one error."""
        sizes = [abs(error) for error in errors]
        tenths = quantiles(sizes, n=10, method="inclusive") if len(sizes) > 1 else sizes * 9
        return Spread(len(sizes), tenths[4], tenths[8])


def fit(
    predict: Predict,
    seconds: Sequence[float],
    device: Device,
    stack: Stack,
    unknowns: Mapping[str, Unknown],
) -> Fitted:
    """`device` and `stack` with those `unknowns` that make `predict` meet `seconds` best.

    Raises `InvalidArgument` for times that cannot be, for fewer of them than one more than
    unknowns, and where no fit is found; `ConfigError` where scipy is not installed.
    """
    _check(seconds, unknowns)
    names = tuple(unknowns)
    starts = np.log([unknowns[name].start for name in names])
    factors = np.log([unknowns[name].factor for name in names])
    bounds = [np.log([getattr(unknowns[n], side) for n in names]) for side in ("low", "high")]
    measured = np.log(seconds)

    def machine(x: Any) -> tuple[Device, Stack]:
        return with_figures(device, stack, dict(zip(names, np.exp(x).tolist(), strict=True)))

    def residuals(x: Any) -> Any:
        predicted = np.log(predict(*machine(x)))
        return np.concatenate([(predicted - measured) / TOLERANCE, (x - starts) / factors])

    found = _least_squares()(
        residuals, starts, bounds=bounds, loss="soft_l1", max_nfev=_EVALUATIONS_MAX
    )
    if not found.success or not np.isfinite(found.x).all():
        raise InvalidArgument(f"the measured times lead to no fit: {found.message}")
    best = _validated(*machine(found.x))
    values = dict(zip(names, np.exp(found.x).tolist(), strict=True))
    return Fitted(*best, values, tuple(seconds), tuple(predict(*best)))


def fit_steps(
    model: ModelShape,
    precision: Precision,
    measured: Sequence[Measured],
    device: Device,
    stack: Stack,
    layout: ParallelLayout | None = None,
    unknowns: Mapping[str, Unknown] | None = None,
) -> Fitted:
    """`fit` to engine steps of one replica, of one rank unless `layout` says otherwise. unknowns:
    none takes `step_unknowns`."""
    ranks = layout or ParallelLayout()

    def predict(device: Device, stack: Stack) -> list[float]:
        cost = CostModel(model, ranks, precision, device, stack)
        return [cost.step(step.rows).seconds for step in measured]

    if unknowns is None:
        unknowns = step_unknowns(model, precision, device.flops_per_s)
    return fit(predict, [step.seconds for step in measured], device, stack, unknowns)


def step_unknowns(
    model: ModelShape, precision: Precision, flops_per_s: Mapping[str, float]
) -> dict[str, Unknown]:
    """What steps of this model tell of a device with these rates and of its engine.

    Each step of one model has all of its layers and reads all of its weights. So steps tell
    `layer_s` from `step_s`, and both from `weights`, by little but where they are thought to lie.
    """

    def shares(
        kind: str, dtypes: set[str], start: float, factor: float = 10.0
    ) -> dict[str, Unknown]:
        unknown = Unknown(start, 0.005, 2.0, factor)
        return {f"device.efficiency.{kind}.{dtype}": unknown for dtype in sorted(dtypes)}

    held = {precision.attention, precision.head}
    if model.sparse_layers < model.layers or model.shared_params:
        held.add(precision.ffn)
    used = {multiplied_in(dtype, flops_per_s) for dtype in held}
    unknowns = {
        # Large products and streams are near the peak; attention is as good as its kernel.
        **shares("matmul", used, 0.7, 1.5),
        **shares("weights", held, 0.8, 1.5),
        **shares("prompt_attention", {multiplied_in("bf16", flops_per_s)}, 0.3),
        **shares("kv", {precision.kv}, 0.5),
        "stack.layer_s": Unknown(5e-5, 1e-7, 1e-1),
        "stack.step_s": Unknown(5e-4, 1e-6, 1.0),
        "stack.sequence_s": Unknown(5e-5, 1e-7, 1e-1),
        "stack.prompt_s": Unknown(2e-4, 1e-7, 1.0),
    }
    if model.experts is not None:
        dtype = precision.experts
        unknowns["stack.sparse_layer_s"] = Unknown(1e-4, 1e-7, 1e-1)
        unknowns[f"stack.expert_matmul.{dtype}"] = Unknown(0.5, 0.01, 2.0)
        unknowns[f"stack.expert_weights.{dtype}"] = Unknown(0.5, 0.01, 2.0)
    return unknowns


def with_figures(
    device: Device, stack: Stack, figures: Mapping[str, float]
) -> tuple[Device, Stack]:
    """Both with figures replaced, by the names that this module uses; a number format that has no
    figure yet gets one. Values are not checked. Raises `InvalidArgument` for a name of nothing."""
    parts: dict[str, Any] = {"device": device, "stack": stack}
    for name, value in figures.items():
        parts = _replaced(parts, name.split("."), value, name)
    return parts["device"], parts["stack"]


def _replaced(node: Any, keys: Sequence[str], value: float, name: str) -> Any:
    if not keys:
        return value
    first, rest = keys[0], keys[1:]
    if isinstance(node, BaseModel) and first in type(node).model_fields:
        return node.model_copy(update={first: _replaced(getattr(node, first), rest, value, name)})
    if isinstance(node, Mapping) and (first in node or not rest):
        return {**node, first: _replaced(node.get(first), rest, value, name)}
    raise InvalidArgument(f"{name} is no figure of a device or stack; {first} is not known")


def _check(seconds: Sequence[float], unknowns: Mapping[str, Unknown]) -> None:
    for taken in seconds:
        if not (math.isfinite(taken) and taken > 0):
            raise InvalidArgument(f"a measured time is {taken} s; allowed: finite, above 0")
    if len(seconds) <= len(unknowns):
        raise InvalidArgument(
            f"{len(seconds)} measured times cannot tell {len(unknowns)} figures; allowed: at least "
            f"{len(unknowns) + 1} times"
        )


def _validated(device: Device, stack: Stack) -> tuple[Device, Stack]:
    try:
        return Device.model_validate(device.model_dump()), Stack.model_validate(stack.model_dump())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InvalidArgument(
            f"the fit is no possible machine: {where}: {problem['msg']}"
        ) from error


def _least_squares() -> Callable[..., Any]:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise ConfigError(
            "fitting needs scipy, which is not installed; allowed: pip install 'eastwest[plan]'"
        ) from error
    solve: Callable[..., Any] = least_squares
    return solve
