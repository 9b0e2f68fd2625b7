"""What a serving engine adds to a device's time, and what it makes of its kernels.

A GPU that waits for its host, launches small kernels and samples tokens is slower than its
arithmetic. These terms belong to the software: they hold on whatever device it runs, and were
fitted for each engine on measured rows (`python -m bench planner` shows how far off they are).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from statistics import fmean

import yaml
from pydantic import BaseModel, ConfigDict, Field

from eastwest.errors import ConfigError
from planner.nearest import nearest

DEFAULT_STACK = "tuned"


class Stack(BaseModel):
    """One serving engine. Times in seconds; shares multiply those of the device."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    layer_s: float = Field(ge=0, description="each layer of each step: launches, norms, rotary")
    sparse_layer_s: float = Field(
        0.0, ge=0, description="added by experts: scoring, choosing, permuting"
    )
    step_s: float = Field(0.0, ge=0, description="each step: scheduling, sampling, streaming")
    sequence_s: float = Field(0.0, ge=0, description="each sequence of a step")
    prompt_s: float = Field(0.0, ge=0, description="each prompt in a step: admission, its batch")
    request_s: float = Field(
        0.0, ge=0, description="each request, beside the steps: tokenising, queues, HTTP"
    )
    collective_s: float = Field(0.0, ge=0, description="added to the device's latency of each")
    matmul: float = Field(1.0, gt=0, description="share of the device's large matmul rate")
    weights: float = Field(1.0, gt=0, description="share of its rate of streaming weights")
    attention: float = Field(1.0, gt=0, description="share of its attention rates")
    expert_matmul: Mapping[str, float] = Field(
        {}, description="share of `matmul` in grouped matmuls, by format of the experts"
    )
    expert_weights: Mapping[str, float] = Field(
        {}, description="share of `weights` when experts are read, by format"
    )
    overlap: float = Field(
        0.0, ge=0, le=1, description="share of communication hidden behind compute"
    )
    source: str = ""

    def experts(self, kind: str, dtype: str) -> float:
        """Share of grouped kernels; a format that was not measured is taken as the mean of those
        that were, and as 0.5 where none was."""
        shares: Mapping[str, float] = getattr(self, f"expert_{kind}")
        return shares.get(dtype, fmean(shares.values()) if shares else 0.5)


def stack_names() -> tuple[str, ...]:
    """Names of the catalogue, sorted."""
    return tuple(sorted(_catalogue()))


def find_stack(name: str) -> Stack:
    """A serving engine by name. Raises `ConfigError` naming the nearest."""
    stack = _catalogue().get(name.strip().lower())
    if stack is None:
        raise ConfigError(f"stack {name!r} is not known; {nearest(name, _catalogue())}")
    return stack


@cache
def _catalogue() -> Mapping[str, Stack]:
    text = files("planner").joinpath("catalogue/stacks.yaml").read_text(encoding="utf-8")
    return {name: Stack(name=name, **fields) for name, fields in yaml.safe_load(text).items()}
