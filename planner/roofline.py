"""Ideal rooflines: what arithmetic, memory and links allow at best, before anything is measured.

No efficiency and no overhead enters here (`planner.cost` has those), so these are bounds, and the
scale on which a measurement is judged. Symbols: B tokens or sequences in a step, D hidden size,
F feed-forward size, Y devices that share a layer. The formulas are those of the scaling book
(jax-ml.github.io/scaling-book, "Inference") and of P. Lapukhov's talk "GPU systems and (LL)
Models"; docs/roofline.md says where a figure of either is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eastwest.layout import ParallelLayout
from planner.cost import Row
from planner.hardware import Device
from planner.memory import kv_of_sequence, weights_per_rank
from planner.model_shape import ModelShape
from planner.precision import Precision, bytes_of, multiplied_in
from planner.work import Work, dense_ffn_work, experts_work, intensity, step_work

WHOLE = ParallelLayout()  # one rank that holds everything

# Devices.


def rate(device: Device, dtype: str) -> float:
    """FLOP/s of one device on weights of `dtype`, at its peak."""
    return device.flops_per_s[multiplied_in(dtype, device.flops_per_s)]


def ridge(device: Device, dtype: str) -> float:
    """FLOPs for each byte from memory above which arithmetic is what a device waits for."""
    return rate(device, dtype) / device.memory.bytes_per_s


def memory_over_network(device: Device) -> float:
    """How many times faster memory is than the scale-up links of the same device, one way."""
    return device.memory.bytes_per_s / device.scale_up.bytes_per_s


def up_over_out(device: Device) -> float:
    """How many times faster the scale-up links are than the network between domains."""
    return device.scale_up.bytes_per_s / device.scale_out.bytes_per_s


def sweep_s(device: Device) -> float:
    """To read all of memory once: no step that uses all of it is shorter."""
    return device.memory.bytes / device.memory.bytes_per_s


# Matrices.


def matmul_intensity(rows: float, inner: float, columns: float, dtype: str) -> float:
    """FLOPs a byte of ``[rows, inner] @ [inner, columns]``, where both are read and the product
    is written once, all in `dtype`."""
    elements = rows * inner + inner * columns + rows * columns
    return 2 * rows * inner * columns / (elements * bytes_of(dtype))


def matmul_crossover(device: Device, dtype: str) -> float:
    """The N from which N x N x N waits for arithmetic: ``2 N / (3 bytes) > ridge``."""
    return 1.5 * bytes_of(dtype) * ridge(device, dtype)


def critical_batch(device: Device, dtype: str) -> float:
    """Tokens in a step from which weights of `dtype` cost arithmetic rather than reading:
    ``FLOP/s * bytes / (2 * memory bytes/s)``."""
    return ridge(device, dtype) * bytes_of(dtype) / 2


# Steps.


@dataclass(frozen=True, slots=True)
class StepBound:
    """The least time of a step, by what it waits for, in seconds.

    Matrices wait for arithmetic or for weights; attention for arithmetic or for KV. In decode
    this is ``B KV / BW + max(2 B P / FLOPs, P bytes / BW)``, wherever reading KV takes longer than
    scoring it.
    """

    matmul_s: float
    weights_s: float
    scores_s: float
    kv_s: float

    @property
    def seconds(self) -> float:
        return max(self.matmul_s, self.weights_s) + max(self.scores_s, self.kv_s)

    @property
    def waits_for(self) -> str:
        """Its longest wait: weights, KV, matrices or scores."""
        matrices = ("matrices", self.matmul_s), ("weights", self.weights_s)
        attention = ("scores", self.scores_s), ("KV", self.kv_s)
        return max((*matrices, *attention), key=lambda wait: wait[1])[0]


def step_bound(
    work: Iterable[Work], device: Device, devices: float = 1, mfu: float = 1.0
) -> StepBound:
    """`work` shared evenly by `devices` that never wait for each other.

    mfu: share of peak FLOP/s that is reached; memory is at its peak.
    """
    seconds = {True: 0.0, False: 0.0}  # of arithmetic, by whether there are weights
    weights = kv = 0.0
    for part in work:
        seconds[part.weight_bytes > 0] += part.flops / (rate(device, part.dtype) * mfu)
        weights += part.weight_bytes
        kv += part.kv_bytes
    stream = device.memory.bytes_per_s * devices
    return StepBound(
        seconds[True] / devices, weights / stream, seconds[False] / devices, kv / stream
    )


def decode_work(
    model: ModelShape, precision: Precision, batch: float, context: float
) -> tuple[Work, ...]:
    """A step in which `batch` sequences reach `context` tokens each."""
    return step_work(model, precision, [Row(1, context - 1, batch)])


def prefill_work(
    model: ModelShape, precision: Precision, isl: float, batch: float = 1
) -> tuple[Work, ...]:
    """`batch` prompts of `isl` tokens in one step, none of them known."""
    return step_work(model, precision, [Row(isl, 0, batch)])


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """Decode at one batch size: latency to a user against throughput of a device, at best."""

    batch: int
    flops_per_byte: float
    flops_per_s_per_device: float
    step_s: float
    waits_for: str
    tokens_per_s_per_user: float
    tokens_per_s_per_device: float
    fits: bool


def decode_points(
    model: ModelShape,
    precision: Precision,
    device: Device,
    batches: Sequence[int],
    context: float,
    devices: int = 1,
) -> tuple[DecodePoint, ...]:
    """Decode by batch, on `devices`; `fits` is without a reserve."""
    room = fit(model, precision, device, context, devices, reserve=0.0).sequences
    points = []
    for batch in batches:
        work = decode_work(model, precision, batch, context)
        step = step_bound(work, device, devices)
        user = 1 / step.seconds
        points.append(
            DecodePoint(
                batch=batch,
                flops_per_byte=intensity(work),
                flops_per_s_per_device=sum(w.flops for w in work) * user / devices,
                step_s=step.seconds,
                waits_for=step.waits_for,
                tokens_per_s_per_user=user,
                tokens_per_s_per_device=batch * user / devices,
                fits=batch <= room,
            )
        )
    return tuple(points)


# Memory.


@dataclass(frozen=True, slots=True)
class Fit:
    """What `devices` hold together: weights once, and KV in the rest. Both counts are 0 where the
    weights do not fit."""

    devices: int
    reserve: float
    memory_bytes: float
    weight_bytes: float
    tokens: float
    sequences: float


def fit(
    model: ModelShape,
    precision: Precision,
    device: Device,
    context: float,
    devices: int = 1,
    reserve: float = 0.0,
) -> Fit:
    """Sequences of `context` tokens, and tokens in them, beside one copy of the weights.

    reserve: share of memory that is left to everything else; 0 is the ideal.
    """
    memory = device.memory.bytes * devices
    weights = weights_per_rank(model, WHOLE, precision)
    each = kv_of_sequence(model, WHOLE, precision, context)
    sequences = that_fit(memory * (1 - reserve), weights, each)
    return Fit(devices, reserve, memory, weights, sequences * context, sequences)


def that_fit(memory_bytes: float, weight_bytes: float, each_bytes: float) -> float:
    """How many of `each_bytes` lie beside the weights."""
    return max(0.0, memory_bytes - weight_bytes) / each_bytes


def devices_for(device: Device, held_bytes: float) -> float:
    """Devices that hold so much, as a fraction."""
    return held_bytes / device.memory.bytes


# Scale-up.


@dataclass(frozen=True, slots=True)
class ScaleUp:
    """The feed-forward network of one layer on one device, and what sharing it out costs.

    compute_s and memory_s shrink with the devices that share it; network_s does not: the partial
    sums of all tokens pass each link twice (reduce-scatter, then all-gather; the share 1/Y that
    stays is left out).
    """

    batch: float
    compute_s: float
    memory_s: float
    network_s: float

    def useful(self, latency_s: float = 0.0) -> float:
        """Devices Y at which the network takes as long as the work of each: more do not help.

        ``max(compute, memory) / (latency + 2 B D bytes / NetBW)``. Without latency and below the
        critical batch, that is ``F NetBW / (B MemBW)`` for two matrices in the format of
        activations.
        """
        return max(self.compute_s, self.memory_s) / (latency_s + self.network_s)


def scale_up(
    model: ModelShape,
    precision: Precision,
    device: Device,
    batch: float,
    matrices: int | None = None,
) -> ScaleUp:
    """For `batch` tokens; of the layers with experts, where there are some.

    matrices: count the network as of so many (the talk takes 2) rather than the model's own 3.
    """
    work = experts_work(model, precision, batch, min(1, model.sparse_layers))
    bound = step_bound(work or [dense_ffn_work(model, precision, batch, 1)], device)
    share = 1.0 if matrices is None else matrices / model.ffn_matrices
    network = 2 * activation_bytes(model, precision, batch) / device.scale_up.bytes_per_s
    return ScaleUp(batch, bound.matmul_s * share, bound.weights_s * share, network)


def activation_bytes(model: ModelShape, precision: Precision, batch: float) -> float:
    """What `batch` tokens are between two layers: ``B D`` elements."""
    return batch * model.hidden * bytes_of(precision.activations)


# Both phases.


def e2e_s(ttft_s: float, tpot_s: float, osl: float) -> float:
    """Request to last token: the first of `osl` tokens comes with TTFT."""
    return ttft_s + (osl - 1) * tpot_s


def requests_per_s(batch: float, step_s: float, osl: float) -> float:
    """Requests that a decode replica finishes when `batch` sequences run at all times."""
    return batch / (step_s * osl)


def prefills_per_decode(prefill_s: float, step_s: float, osl: float, batch: float) -> float:
    """Prefill replicas that keep one decode replica busy, where each computes one prompt at a
    time: ``prefill_s * B / (step_s * OSL)``."""
    return prefill_s * requests_per_s(batch, step_s, osl)


def tokens_freed_per_step(isl: float, osl: float, batch: float) -> float:
    """Tokens of KV that finished sequences give back each step, in the mean: ``B (ISL + OSL) /
    OSL``, and so what prefill has to refill."""
    return batch * (isl + osl) / osl
