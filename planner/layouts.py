"""Which layouts a model allows on a device, and the ones worth trying."""

from __future__ import annotations

from collections.abc import Iterator

from eastwest.layout import ParallelLayout
from planner.hardware import Device
from planner.memory import sequences_that_fit
from planner.model_shape import ModelShape
from planner.precision import Precision

TP_MAX = 64
PP_MAX = 8


def fits_model(model: ModelShape, layout: ParallelLayout) -> bool:
    """Whether heads, networks and experts divide as the engine needs: what divides evenly, with
    KV heads replicated where tp exceeds them, and experts in equal shares."""
    tp, kv = layout.tp, model.kv_heads
    even = model.heads % tp == 0 and (kv % tp == 0 or tp % kv == 0)
    dense = model.sparse_layers == model.layers or model.ffn_size % tp == 0
    if not (even and dense and layout.pp <= model.layers):
        return False
    experts = model.experts
    if experts is None:
        return layout.ep == 1
    if experts.shared_size % tp:
        return False
    if layout.ep == 1:
        return experts.ffn_size % tp == 0
    in_group, rest = divmod(layout.ep, layout.dp)
    if rest or in_group == 0 or tp % in_group or experts.count % layout.ep:
        return False
    return experts.ffn_size % (tp // in_group) == 0


def candidates(
    model: ModelShape, precision: Precision, device: Device, devices: int, tokens: float
) -> Iterator[ParallelLayout]:
    """Layouts of up to `devices` devices that fit the model, and in which at least one sequence of
    `tokens` tokens a group fits beside the weights.

    Tensor parallelism stays inside a scale-up domain, where its collectives belong; dense models
    have no data-parallel groups, which are replicas by another name.
    """
    for layout in _shapes(model, device, devices):
        if not fits_model(model, layout):
            continue
        if sequences_that_fit(model, layout, precision, device, tokens) >= layout.dp:
            yield layout


def _shapes(model: ModelShape, device: Device, devices: int) -> Iterator[ParallelLayout]:
    widest = min(devices, device.scale_up.domain, TP_MAX)
    for tp in _steps(widest):
        for pp in _steps(min(PP_MAX, devices // tp)):
            yield ParallelLayout(tp=tp, pp=pp)
            if model.experts is None or pp > 1:
                continue
            if tp > 1:
                yield ParallelLayout(tp=tp, ep=tp)
            for dp in _steps(devices // tp):
                if dp > 1:
                    yield ParallelLayout(tp=tp, dp=dp, ep=tp * dp)


def _steps(limit: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, …: powers of two and three times them."""
    size = 1
    while size <= limit:
        yield size
        if size > 1 and size * 3 // 2 <= limit:
            yield size * 3 // 2
        size *= 2
