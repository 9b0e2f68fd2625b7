"""Time of one engine step: each part is max(compute, memory), then communication and fixed costs.

One formula serves the planner, the simulator and the router's choices. What a part takes is

    max(FLOPs / (rate * share), bytes / (bandwidth * share))

on the busiest rank of a stage, with the shares that were measured for the device and the engine.
Collectives come after the part that needs them, hidden only as far as the engine says. All numbers
are of one replica; times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eastwest.layout import ParallelLayout
from planner.hardware import Device
from planner.memory import attention_params_of_rank, kv_heads_share
from planner.model_shape import ModelShape
from planner.network import Network
from planner.precision import Precision, bytes_of, multiplied_in
from planner.stacks import Stack


@dataclass(frozen=True, slots=True)
class Row:
    """`count` sequences that each compute `new` tokens after `past` known ones, and sample one
    token unless the prompt goes on."""

    new: float
    past: float
    count: float = 1.0
    samples: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of a step takes over all layers and stages, in seconds.

    compute_s, memory_s: by themselves, with efficiency. seconds: what the step pays for it.
    """

    name: str
    compute_s: float
    memory_s: float
    network_s: float
    fixed_s: float
    seconds: float

    @property
    def bound(self) -> str:
        """Which of compute, memory, network or fixed costs it waits for most."""
        sides = {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "network": self.network_s,
            "fixed": self.fixed_s,
        }
        return max(sides, key=sides.__getitem__)


@dataclass(frozen=True, slots=True)
class StepCost:
    """One step: its parts, and their sum. interval_s: how soon the next micro-batch can follow on
    the busiest stage (the same without pipeline stages)."""

    parts: tuple[Part, ...]
    interval_s: float

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Weights that tokens are multiplied with: seconds of arithmetic a token, of reading the
    weights once, and of what a token moves."""

    name: str
    compute_s: float
    read_s: float
    moved_s: float

    def times(self, tokens: float) -> Part:
        compute = tokens * self.compute_s
        memory = self.read_s + tokens * self.moved_s if tokens else 0.0
        return Part(self.name, compute, memory, 0.0, 0.0, max(compute, memory))


class CostModel:
    """Step times of one replica of `model`, spread by `layout` over devices of one kind."""

    def __init__(
        self,
        model: ModelShape,
        layout: ParallelLayout,
        precision: Precision,
        device: Device,
        stack: Stack,
        skew: float = 1.0,
    ) -> None:
        """skew: load of the busiest expert-parallel rank over the mean, beyond what chance brings;
        1 is even routing."""
        self.model = model
        self.layout = layout
        self.precision = precision
        self.device = device
        self.stack = stack
        self.skew = skew
        self.network = Network(device, stack)
        self._layers = math.ceil(model.layers / layout.pp)
        self._windows = model.window_groups()
        self._weights = self._matrices()

    def step(self, rows: Sequence[Row]) -> StepCost:
        """All rows as one micro-batch through every stage.

        Rows spread evenly over data-parallel groups; the step is as long as a group with its even
        share takes, experts being shared by all.
        """
        model, layout = self.model, self.layout
        tokens = sum(row.new * row.count for row in rows) / layout.dp
        sequences = sum(row.count for row in rows) / layout.dp
        sampled = sum(row.count for row in rows if row.samples) / layout.dp
        layers, sparse = model.layers, model.sparse_layers
        dense = layers - sparse
        per_layer = [
            (self._weights["projections"].times(tokens), layers),
            (self._attention(rows), 1),
            (self._weights["ffn"].times(tokens), dense),
            *((part, sparse) for part in self._experts(tokens)),
            (self._collectives(tokens), layers),
        ]
        parts = [_times(part, count) for part, count in per_layer if count and part is not None]
        fixed = layers * self.stack.layer_s + sparse * self.stack.sparse_layer_s
        parts.append(Part("layers", 0.0, 0.0, 0.0, fixed, fixed))
        stages = sum(part.seconds for part in parts)
        interval = stages * self._layers / layers
        if layout.pp > 1:
            parts.append(self._hand_over(tokens))
        prompts = sum(row.count for row in rows if row.new > 1) / layout.dp
        end = [self._weights["head"].times(sampled), self._step(sequences, prompts)]
        return StepCost((*parts, *end), interval + sum(part.seconds for part in end))

    # Parts. Each is of one layer, on the busiest rank.

    def _matrices(self) -> dict[str, _Matrix]:
        """Dense weights of one layer, and the head, as one rank has them."""
        model, tp, precision = self.model, self.layout.tp, self.precision
        params = {
            "projections": (attention_params_of_rank(model, tp), precision.attention),
            "ffn": (model.dense_ffn_params / tp, precision.ffn),
            "shared experts": (model.shared_params / tp + model.router_params, precision.ffn),
            "head": (model.head_params / tp, precision.head),
        }
        return {
            name: _Matrix(
                name,
                2 * size / (self._rate("matmul", dtype) * self.stack.matmul),
                size * bytes_of(dtype) / self._stream(dtype),
                # About what goes in and comes out of a token.
                size**0.5 * 2 * bytes_of(precision.activations) / self.device.memory.bytes_per_s,
            )
            for name, (size, dtype) in params.items()
        }

    def _experts(self, tokens: float) -> list[Part]:
        """Shared experts and router, then the routed ones."""
        model, layout = self.model, self.layout
        experts = model.experts
        if experts is None:
            return []
        parts = [self._weights["shared experts"].times(tokens)]
        everyone = tokens * layout.dp if layout.ep > 1 else tokens
        ranks = layout.tp * layout.dp if layout.ep > 1 else layout.tp
        hot = self._hot(everyone * experts.top_k)
        work = everyone * experts.top_k * model.expert_params / ranks * hot
        touched = experts.touched(everyone) / layout.ep * min(hot, 1.5)
        held = experts.count / layout.ep
        weights = min(touched, held) * model.expert_params * layout.ep / ranks
        dtype = self.precision.experts
        grouped = self.stack.experts("matmul", dtype)
        rate = self._rate("matmul", dtype) * self.stack.matmul * grouped
        stream = self._stream(dtype) * self.stack.experts("weights", dtype)
        wide = bytes_of(self.precision.activations)
        moved = everyone * experts.top_k / ranks * model.hidden * 2 * wide
        compute = 2 * work / rate
        memory = weights * bytes_of(dtype) / stream + moved / self.device.memory.bytes_per_s
        parts.append(Part("experts", compute, memory, 0.0, 0.0, max(compute, memory)))
        return parts

    def _hot(self, assignments: float) -> float:
        """The busiest of `ep` ranks over the mean: ``skew * (1 + sqrt(2 ln(ep) / mean))``, the
        expected maximum of ep Poisson counts of that mean, roughly."""
        ep = self.layout.ep
        if ep == 1:
            return 1.0
        mean = max(assignments / ep, 1e-9)
        return min(self.skew * (1 + math.sqrt(2 * math.log(ep) / mean)), ep)

    def _attention(self, rows: Sequence[Row]) -> Part:
        """Scores, values and KV traffic, over all layers: windows differ between them."""
        model, dp = self.model, self.layout.dp
        spec, kv_bytes = model.kv_elements, bytes_of(self.precision.kv)
        share = kv_heads_share(model, self.layout.tp)
        prompt_rate = self._rate("prompt_attention", self._attention_dtype())
        decode_rate = self._rate("matmul", self._attention_dtype())
        stream = self.device.memory.bytes_per_s * self.device.share("kv", self.precision.kv)
        sides = {True: [0.0, 0.0], False: [0.0, 0.0]}  # prompts and decodes: kernels of their own
        for row in rows:
            many = row.count / dp
            prompt = row.new > 1
            dims = model.prefill_attended_dims if prompt else model.attended_dims
            rate = prompt_rate if prompt else decode_rate
            side = sides[prompt]
            for window, layers in self._windows:
                pairs, read = attended(row.new, row.past, window)
                if model.indexer is not None:
                    pairs, read = picked(row.new, row.past, pairs, read, model.indexer.top_k)
                side[0] += layers * many * 2 * dims * pairs / self.layout.tp / rate
                side[1] += layers * many * (read + row.new) * spec * share * kv_bytes / stream
            if model.indexer is not None:
                index = self._index(row)
                side[0] += many * index[0] / rate
                side[1] += many * index[1] / stream
        scale = 1 / self.stack.attention
        compute, memory = (sum(side[i] for side in sides.values()) * scale for i in (0, 1))
        seconds = sum(max(side) for side in sides.values()) * scale
        return Part("attention", compute, memory, 0.0, 0.0, seconds)

    def _index(self, row: Row) -> tuple[float, float]:
        """FLOPs and bytes of scoring all known tokens by index, over all layers; index keys are
        of 8 bits, and lie on every rank, which score the heads that they have."""
        index = self.model.indexer
        assert index is not None
        pairs, read = attended(row.new, row.past, None)
        flops = index.layers * 2 * index.heads * index.dim * pairs / self.layout.tp
        return flops, index.layers * read * index.dim

    def _collectives(self, tokens: float) -> Part | None:
        """Of one layer: after attention and after the feed-forward network."""
        model, layout = self.model, self.layout
        wide = tokens * model.hidden * bytes_of(self.precision.activations)
        seconds = 0.0
        exchanged = layout.ep > 1 and layout.dp > 1
        if layout.tp > 1:
            seconds += self.network.all_reduce(wide, layout.tp) * (1 if exchanged else 2)
        if exchanged and model.experts is not None:
            sparse = model.sparse_layers / model.layers
            seconds += sparse * self._exchange(tokens)
            if layout.tp > 1:  # dense layers still reduce; sparse ones gather what ranks combined
                seconds += self.network.all_gather(wide, layout.tp) * sparse
                seconds += self.network.all_reduce(wide, layout.tp) * (1 - sparse)
        if not seconds:
            return None
        seconds *= 1 - self.stack.overlap
        return Part("collectives", 0.0, 0.0, seconds, 0.0, seconds)

    def _exchange(self, tokens: float) -> float:
        """Dispatch and combine among all expert-parallel ranks, of tokens split over tp.

        A token goes once to each rank that has some of its experts: ``ep (1 - (1 - 1/ep)^k)``
        ranks of which one may be its own; in 8 bits on the way there, in 16 back.
        """
        experts = self.model.experts
        assert experts is not None
        ep, group = self.layout.ep, self.layout.tp * self.layout.dp
        copies = ep * (1 - (1 - 1 / ep) ** experts.top_k) * (1 - 1 / ep)
        hot = self._hot(tokens * self.layout.dp * experts.top_k)
        elements = tokens / self.layout.tp * self.model.hidden * hot
        there = 1 if bytes_of(self.precision.experts) <= 1 else 2
        back = self.network.all_to_all(elements * 2, copies, group)
        return self.network.all_to_all(elements * there, copies, group) + back

    def _hand_over(self, tokens: float) -> Part:
        """From stage to stage, each tensor rank its share."""
        wide = tokens * self.model.hidden * bytes_of(self.precision.activations) / self.layout.tp
        stages = self.layout.pp - 1
        seconds = stages * self.network.send(wide, self.layout.tp * self.layout.pp)
        return Part("stages", 0.0, 0.0, seconds, 0.0, seconds)

    def _step(self, sequences: float, prompts: float) -> Part:
        stack = self.stack
        fixed = stack.step_s + stack.sequence_s * sequences + stack.prompt_s * prompts
        return Part("step", 0.0, 0.0, 0.0, fixed, fixed)

    # Rates.

    def _rate(self, kind: str, dtype: str) -> float:
        """FLOP/s that are reached."""
        used = multiplied_in(dtype, self.device.flops_per_s)
        return self.device.flops_per_s[used] * self.device.share(kind, used)

    def _stream(self, dtype: str) -> float:
        """Bytes a second at which weights are read."""
        share = self.device.share("weights", dtype) * self.stack.weights
        return self.device.memory.bytes_per_s * share

    def _attention_dtype(self) -> str:
        """Attention is computed in 8 bits only where KV is kept in 8, else as wide as
        activations."""
        if self.precision.kv == "fp8" and "fp8" in self.device.flops_per_s:
            return "fp8"
        return self.precision.activations


def attended(new: float, past: float, window: int | None) -> tuple[float, float]:
    """``(pairs of query and key, keys read)`` of `new` causal queries after `past` keys.

    Query i (from 1) sees ``past + i`` keys, at most `window` of them.
    """
    total = past + new
    if window is None or total <= window:
        return new * past + new * (new + 1) / 2, past
    if past >= window:
        return new * window, window - 1.0
    growing = window - past  # queries that see less than a whole window
    return growing * past + growing * (growing + 1) / 2 + (new - growing) * window, past


def picked(new: float, past: float, pairs: float, read: float, top_k: int) -> tuple[float, float]:
    """The same where each query picks `top_k` of the keys that it would see."""
    return min(pairs, attended(new, past, top_k)[0]), min(read, new * top_k)


def _times(part: Part, count: int) -> Part:
    return Part(
        part.name,
        part.compute_s * count,
        part.memory_s * count,
        part.network_s * count,
        part.fixed_s * count,
        part.seconds * count,
    )
