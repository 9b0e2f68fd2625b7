"""What work takes on the workers of a deployment, by the cost model: what placement asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any

from eastwest.messages import ModelInfo, WorkerInfo
from planner.cost import CostModel, Row
from planner.cost_values import cost_values
from planner.precision import Precision

# Sizes are rounded to so many steps for each doubling, so that few are computed twice.
_STEPS = 16
_FORMATS = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float8_e4m3": "fp8",
    "int8": "int8",
}

# What a server of its own kind gives one reader, until that was measured.
STORE_BYTES_PER_S = 1e9
STORE_LATENCY_S = 1e-3

CostOf = Callable[[WorkerInfo], CostModel]


def precision_of(model: ModelInfo, quantization: str) -> Precision:
    """What the engine keeps each part of a model in, as the planner calls it."""
    wide = _FORMATS[model.dtype]
    weights = "int8w" if quantization == "int8" else wide
    return Precision(weights, weights, weights, weights, _FORMATS[model.kv.dtype], wide)


class PlannedCosts:
    """Is `eastwest.ports.ServingCosts`. cost_of: the cost model of a worker, asked for once of each
    role, layout and number format. Both ends of a transfer have links like the source's."""

    def __init__(self, cost_of: CostOf) -> None:
        self._cost_of = cost_of
        self._kinds: dict[Hashable, _Kind] = {}
        self._workers: dict[tuple[str, int], _Kind] = {}

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        """See the protocol. Each chunk is taken to be the mean one."""
        if new_tokens <= 0:
            return 0.0
        new, past = _rounded(new_tokens), _rounded(past_tokens)
        return self._of(worker).prompt(worker.step_tokens, new, past)

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        """See the protocol. The prompt is one that begins."""
        if sequences <= 0:
            return 0.0
        context = _rounded(context_tokens // sequences)
        return self._of(worker).step(sequences, context, prompt_tokens)

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        """See the protocol. One process of a replica reads, and nobody has described the store."""
        link = self._of(worker).cost.device.scale_out
        rate = min(STORE_BYTES_PER_S, link.bytes_per_s)
        return tokens * worker.model.kv.bytes_per_token / rate + STORE_LATENCY_S

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        """See the protocol. Ranks send to ranks, so the side with fewer is the narrow one."""
        ends = self._of(source).cost, self._of(target).cost
        device = ends[0].device
        ranks = min(cost.layout.group_size for cost in ends)
        rate = device.scale_out.bytes_per_s * device.efficiency.link * ranks
        return tokens * target.model.kv.bytes_per_token / rate + device.scale_out.latency_s

    def described(self, worker: WorkerInfo) -> Mapping[str, Any]:
        """Plain values of the worker's cost model; `planner.cost_values` makes it of them again."""
        return cost_values(self._of(worker).cost)

    def _of(self, worker: WorkerInfo) -> _Kind:
        found = self._workers.get((worker.worker_id, worker.epoch))
        if found is None:
            kind = (worker.role, worker.layout, worker.model.dtype, worker.model.kv.dtype)
            found = self._kinds.get(kind)
            if found is None:
                found = self._kinds[kind] = _Kind(self._cost_of(worker))
            self._workers[worker.worker_id, worker.epoch] = found
        return found


class _Kind:
    """Times of workers that are alike, each computed once."""

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost
        self.prompt = lru_cache(maxsize=1 << 16)(self._prompt)
        self.step = lru_cache(maxsize=1 << 16)(self._step)

    def _prompt(self, step_tokens: int, new: int, past: int) -> float:
        chunks = math.ceil(new / step_tokens)
        each = new / chunks
        return chunks * self.cost.step([Row(each, past + (new - each) / 2)]).seconds

    def _step(self, sequences: int, context: int, prompt: int) -> float:
        rows = [Row(1, context, sequences)]
        if prompt:
            rows.append(Row(prompt, 0))
        return self.cost.step(rows).seconds


def _rounded(tokens: int) -> int:
    """To the nearest of the sizes that are computed."""
    step = 1 << max(0, tokens.bit_length() - _STEPS.bit_length())
    return (tokens + step // 2) // step * step
