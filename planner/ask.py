"""The planner in one typed call, by names: what the command line and notebooks use.

from planner import ask, plan

answer = plan(ask("deepseek-v3", "gb200-nvl72", devices=72, isl=8192, osl=1024,
                  ttft_s=2.0, tpot_s=0.02))
print(answer.advice)
"""

from __future__ import annotations

import math

from eastwest.errors import ConfigError
from planner.hardware import find_device
from planner.models import find_model
from planner.planning import Question
from planner.precision import Precision
from planner.split import Targets
from planner.stacks import DEFAULT_STACK, find_stack
from planner.workload import Workload, steady


def ask(
    model: str,
    hardware: str,
    *,
    ttft_s: float,
    tpot_s: float,
    devices: int | None = None,
    budget_per_hour: float | None = None,
    workload: Workload | None = None,
    isl: float = 0,
    osl: float = 0,
    percentile: float = 0.9,
    weights: str | None = None,
    kv: str | None = None,
    stack: str | None = None,
    price_per_hour: float | None = None,
    availability: float | None = None,
    skew: float = 1.0,
) -> Question:
    """A question, with everything given by name and checked.

    devices or budget_per_hour (in dollars, at the device's price) says how many; workload, or isl
    and osl for requests that are all alike. weights: number format, as published where None.
    skew: load of the busiest expert-parallel rank over the mean; 1 is even routing. stack: serving
    engine; that of a calibrated device, or `DEFAULT_STACK`, where None. Raises
    `ConfigError` and `ModelError`, each naming what is allowed.
    """
    device, shape = find_device(hardware), find_model(model)
    price = device.price.per_hour if price_per_hour is None else price_per_hour
    if not 0 <= price < math.inf:
        raise ConfigError(f"the price of a device is ${price:g} an hour; allowed: from 0")
    asked = _workload(workload, isl, osl)
    _check(asked, shape.context_tokens, shape.name)
    _check_targets(ttft_s, tpot_s, percentile)
    if not 1 <= skew <= 10:
        raise ConfigError(f"the skew of experts is {skew:g}; allowed: 1 (even) to 10")
    if stack is not None or device.stack is None:
        engine = find_stack(stack or DEFAULT_STACK)
    else:
        engine = device.stack
    published = shape.weights if weights is None else weights
    return Question(
        shape,
        device,
        Precision.named(published, kv, sparse=shape.experts is not None),
        engine,
        _devices(devices, budget_per_hour, price),
        asked,
        Targets(ttft_s, tpot_s, percentile),
        price,
        availability,
        skew,
        model.strip(),
    )


def _workload(workload: Workload | None, isl: float, osl: float) -> Workload:
    if workload is not None:
        if isl or osl:
            raise ConfigError("a workload has lengths of its own; allowed: it, or isl and osl")
        return workload
    if not (isl >= 1 and osl >= 1):
        raise ConfigError(
            f"isl is {isl:g} and osl is {osl:g}; allowed: both from 1, or a workload instead"
        )
    return steady(isl, osl)


def _devices(devices: int | None, budget: float | None, price: float) -> int:
    if (devices is None) == (budget is None):
        raise ConfigError("a plan needs a number of devices or a budget; allowed: one of the two")
    if devices is not None:
        return devices
    assert budget is not None
    if price <= 0:
        raise ConfigError("a budget needs the price of a device; allowed: --price above 0")
    if not budget < math.inf:
        raise ConfigError(f"the budget is ${budget:g} an hour; allowed: a number")
    count = int(budget / price * (1 + 1e-12))  # 0.3 / 0.1 is 3
    if count < 1:
        raise ConfigError(
            f"a budget of ${budget:g} an hour buys no device at ${price:g}; allowed: at least that"
        )
    return count


def _check(workload: Workload, context_tokens: int, name: str) -> None:
    if workload.longest > context_tokens * 1.001:
        raise ConfigError(
            f"requests have up to {workload.longest:,.0f} tokens, prompt and answer; allowed: the "
            f"{context_tokens:,} of {name}'s context"
        )


def _check_targets(ttft_s: float, tpot_s: float, percentile: float) -> None:
    if not 0.5 <= percentile < 1:
        raise ConfigError(f"the percentile is {percentile:g}; allowed: 0.5 to below 1, such as 0.9")
    if not (1e-3 <= ttft_s <= 3600 and 1e-4 <= tpot_s <= 10):
        raise ConfigError(
            f"TTFT {ttft_s:g} s and TPOT {tpot_s:g} s; allowed: TTFT from 1 ms to an hour, TPOT "
            f"from 0.1 ms to 10 s"
        )
