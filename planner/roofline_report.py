"""All ideal rooflines of one model on one device, as one value: what `eastwest roofline` shows.

Numbers only, in SI units, so that tables, curves and JSON are of the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from eastwest.errors import ConfigError
from planner.hardware import Device
from planner.memory import RESERVE, kv_per_token
from planner.model_shape import ModelShape
from planner.precision import Precision, bytes_of
from planner.roofline import (
    WHOLE,
    DecodePoint,
    Fit,
    ScaleUp,
    critical_batch,
    decode_points,
    decode_work,
    e2e_s,
    fit,
    matmul_crossover,
    memory_over_network,
    prefill_work,
    prefills_per_decode,
    rate,
    ridge,
    scale_up,
    step_bound,
)
from planner.work import Work, intensity

BATCHES = tuple(2**i for i in range(11))
BATCH_MAX = 65_536
DEVICES_MAX = 4096
TALK_LATENCY_S = 1e-6  # of a hop between two devices, as the talk has it
_ISL = 4096


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked: a replica of `devices` that share a model evenly, prompts of `isl` tokens and
    answers of `osl`, `batch` of them at a time. mfu: share of peak FLOP/s of prefill."""

    model: ModelShape
    device: Device
    precision: Precision
    batch: int
    isl: int
    osl: int
    devices: int
    mfu: float

    @property
    def context(self) -> float:
        """Tokens of a sequence in the middle of its answer."""
        return self.isl + self.osl / 2


@dataclass(frozen=True, slots=True)
class Ridge:
    """Of one number format: see the functions of these names in `planner.roofline`."""

    dtype: str
    flops_per_s: float
    flops_per_byte: float
    matmul_crossover: float
    critical_batch: float


@dataclass(frozen=True, slots=True)
class Size:
    """A component of the model. share: of the weights in all its layers."""

    name: str
    params: int
    layers: int
    weight_bytes: float
    share: float


@dataclass(frozen=True, slots=True)
class Component:
    """What a component does in one step of a whole replica; flops_per_byte is its intensity."""

    name: str
    flops: float
    weight_bytes: float
    kv_bytes: float
    flops_per_byte: float


@dataclass(frozen=True, slots=True)
class Phase:
    """One step: `batch` sequences of decode, or one prompt."""

    components: tuple[Component, ...]
    flops_per_byte: float
    seconds: float
    waits_for: str


@dataclass(frozen=True, slots=True)
class Balance:
    """Both phases together where decode has `batch` sequences at all times: an answer from its
    prompt to its last token, and prefill replicas (of as many devices) for one of decode."""

    batch: int
    e2e_s: float
    prefills_per_decode: float


@dataclass(frozen=True, slots=True)
class ScaleUpRow:
    """One layer over devices, at one batch. useful_devices: in the order of `latencies_s`."""

    matrices: int
    layer: ScaleUp
    useful_devices: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RooflineReport:
    """Everything about one case. weights: format of most of them. latencies_s: none, the talk's,
    and the device's measured one."""

    model: str
    device: str
    weights: str
    precision: Precision
    batch: int
    isl: int
    osl: int
    devices: int
    mfu: float
    memory_bytes_per_s: float
    scale_up_bytes_per_s: float
    memory_over_network: float
    total_params: int
    active_params: int
    kv_token_bytes: float
    ridges: tuple[Ridge, ...]
    sizes: tuple[Size, ...]
    decode: Phase
    prefill: Phase
    fits: tuple[Fit, ...]
    latencies_s: tuple[float, ...]
    scale_up: tuple[ScaleUpRow, ...]
    decode_by_batch: tuple[DecodePoint, ...]
    balance: tuple[Balance, ...]


def case_of(
    model: ModelShape,
    device: Device,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
    batch: int = 16,
    isl: int | None = None,
    osl: int = 512,
    devices: int | None = None,
    mfu: float = 0.4,
) -> Case:
    """A case with what is None chosen: weights as published; activations between devices as wide
    as the weights, of 8 bits at least; the longest usual prompt; the least power of two of devices
    that holds the weights and one sequence.

    Raises `ConfigError` naming what is out of bounds, and the bounds.
    """
    precision = Precision.named(weights or model.weights, kv, sparse=model.experts is not None)
    narrow = bytes_of(_most_weights(model, precision)) <= 1
    # What matrices of a format are multiplied with, for formats that are of weights alone too.
    moved = Precision.named(activations or ("fp8" if narrow else precision.activations)).ffn
    precision = replace(precision, activations=moved)
    room = model.context_tokens
    _check("osl", osl, room - 1, f"tokens ({model.name} has a context of {room:,})")
    left = room - osl
    isl = min(_ISL, left) if isl is None else isl
    _check("isl", isl, left, f"tokens ({model.name} has a context of {room:,}, osl is {osl:,})")
    _check("batch", batch, BATCH_MAX, "sequences")
    if not 0 < mfu <= 1:
        raise ConfigError(f"mfu is {mfu:g}; allowed: above 0, to 1 (a share of peak FLOP/s)")
    if devices is None:
        devices = _least_devices(model, precision, device, isl + osl)
    _check("devices", devices, DEVICES_MAX, "devices in a replica")
    return Case(model, device, precision, batch, isl, osl, devices, mfu)


def roofline_report(case: Case) -> RooflineReport:
    """All of it."""
    model, device, precision = case.model, case.device, case.precision
    decode = decode_work(model, precision, case.batch, case.context)
    prefill = _phase(prefill_work(model, precision, case.isl), case, case.mfu)
    points = decode_points(
        model, precision, device, _batches(case), case.context, devices=case.devices
    )
    latencies = (0.0, TALK_LATENCY_S, device.scale_up.latency_s)
    return RooflineReport(
        model=model.name,
        device=device.name,
        weights=_most_weights(model, precision),
        precision=precision,
        batch=case.batch,
        isl=case.isl,
        osl=case.osl,
        devices=case.devices,
        mfu=case.mfu,
        memory_bytes_per_s=device.memory.bytes_per_s,
        scale_up_bytes_per_s=device.scale_up.bytes_per_s,
        memory_over_network=memory_over_network(device),
        total_params=model.total_params,
        active_params=model.active_params,
        kv_token_bytes=kv_per_token(model, WHOLE, precision),
        ridges=_ridges(case),
        sizes=_sizes(case),
        decode=_phase(decode, case, 1.0),
        prefill=prefill,
        fits=_fits(case),
        latencies_s=latencies,
        scale_up=_scale_up(case, latencies),
        decode_by_batch=points,
        balance=tuple(_balance(case, prefill.seconds, point) for point in points),
    )


def _check(name: str, value: int, most: int, what: str) -> None:
    if not 1 <= value <= most:
        raise ConfigError(f"{name} is {value:,}; allowed: 1 to {most:,} {what}")


def _most_weights(model: ModelShape, precision: Precision) -> str:
    return precision.ffn if model.experts is None else precision.experts


def _least_devices(model: ModelShape, precision: Precision, device: Device, tokens: int) -> int:
    devices = 1
    while fit(model, precision, device, tokens, devices, RESERVE).sequences < 1:
        devices *= 2
        if devices > DEVICES_MAX:
            raise ConfigError(
                f"{DEVICES_MAX:,} of {device.name} do not hold {model.name} and a sequence of "
                f"{tokens:,} tokens; allowed: devices with more memory, or narrower weights"
            )
    return devices


def _batches(case: Case) -> tuple[int, ...]:
    return tuple(sorted({*BATCHES, case.batch}))


def _ridges(case: Case) -> tuple[Ridge, ...]:
    device = case.device
    return tuple(
        Ridge(
            dtype,
            rate(device, dtype),
            ridge(device, dtype),
            matmul_crossover(device, dtype),
            critical_batch(device, dtype),
        )
        for dtype in device.flops_per_s
    )


def _sizes(case: Case) -> tuple[Size, ...]:
    model, precision = case.model, case.precision
    sparse = model.sparse_layers
    resting = 0 if model.experts is None else model.experts.count * model.expert_params
    shared = model.shared_params + model.router_params
    parts = (
        ("attention projections", model.attention_params, model.layers, precision.attention),
        ("feed-forward", model.dense_ffn_params, model.layers - sparse, precision.ffn),
        ("router and shared experts", shared, sparse, precision.ffn),
        ("experts", resting, sparse, precision.experts),
        ("embedding and output head", model.embedding_params, 1, precision.head),
    )
    sizes = [(name, n, times, n * times * bytes_of(dtype)) for name, n, times, dtype in parts]
    whole = sum(size[-1] for size in sizes)
    return tuple(
        Size(name, params, layers, held, held / whole)
        for name, params, layers, held in sizes
        if layers
    )


def _phase(work: tuple[Work, ...], case: Case, mfu: float) -> Phase:
    bound = step_bound(work, case.device, case.devices, mfu)
    components = tuple(
        Component(w.name, w.flops, w.weight_bytes, w.kv_bytes, intensity([w])) for w in work
    )
    return Phase(components, intensity(work), bound.seconds, bound.waits_for)


def _fits(case: Case) -> tuple[Fit, ...]:
    counts = sorted({1, case.devices, case.device.scale_up.domain})
    tokens = case.isl + case.osl
    return tuple(
        fit(case.model, case.precision, case.device, tokens, count, reserve)
        for count in counts
        for reserve in (0.0, RESERVE)
    )


def _scale_up(case: Case, latencies: tuple[float, ...]) -> tuple[ScaleUpRow, ...]:
    """As the talk has it, of two matrices, and of the model's own."""
    rows = []
    for matrices in sorted({2, case.model.ffn_matrices}):
        for batch in _batches(case):
            layer = scale_up(case.model, case.precision, case.device, batch, matrices)
            rows.append(ScaleUpRow(matrices, layer, tuple(layer.useful(s) for s in latencies)))
    return tuple(rows)


def _balance(case: Case, prefill_s: float, point: DecodePoint) -> Balance:
    return Balance(
        point.batch,
        e2e_s(prefill_s, point.step_s, case.osl),
        prefills_per_decode(prefill_s, point.step_s, case.osl, point.batch),
    )
