"""What one process's share of the machine computes and streams at best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from deploy.calibrate.repeated import Work
from eastwest.errors import InvalidArgument

# Large enough for full speed, and for less than a tenth of a second on one core.
_MATMUL_SIDE = 1536
# Several times any last-level cache that one process has to itself.
_STREAM_SIDE = 8192
_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Probe:
    """A piece of work that is nothing but arithmetic or streaming. rate: a number format, "read"
    or "copy". amount: FLOPs or bytes of one run."""

    rate: str
    amount: float
    work: Work


@dataclass(frozen=True, slots=True)
class Peaks:
    """flops_per_s: of large products, by number format. read_bytes_per_s: of memory that is only
    read. copy_bytes_per_s: from memory to memory, each byte counted once."""

    flops_per_s: Mapping[str, float]
    read_bytes_per_s: float
    copy_bytes_per_s: float


def peak_probes(formats: Sequence[str]) -> list[Probe]:
    """What to time, with as many threads as torch has set. formats: fp32, and others that
    products are computed in.

    Sums and products with a vector both read all of a matrix; which is faster depends on the
    machine.
    """
    matrix = torch.ones(_STREAM_SIDE, _STREAM_SIDE)
    vector, target = torch.ones(_STREAM_SIDE), torch.empty_like(matrix)
    return [
        Probe("copy", matrix.nbytes, lambda: target.copy_(matrix)),
        Probe("read", matrix.nbytes, matrix.sum),
        Probe("read", matrix.nbytes, lambda: torch.mv(matrix, vector)),
        *(Probe(name, 2.0 * _MATMUL_SIDE**3, _product(_FORMATS[name])) for name in formats),
    ]


def peaks_of(probes: Sequence[Probe], times: Sequence[Sequence[float]]) -> Peaks:
    """times: seconds of the runs of each probe.

    A format that the machine has no arithmetic for can be widened, so none is slower than fp32.
    Raises `InvalidArgument` where a rate has no times.
    """
    rates: dict[str, float] = {}
    for probe, taken in zip(probes, times, strict=True):
        if taken:
            rates[probe.rate] = max(rates.get(probe.rate, 0.0), probe.amount / min(taken))
    formats = dict.fromkeys(probe.rate for probe in probes if probe.rate not in ("read", "copy"))
    if not {"fp32", "read", "copy"} <= set(rates):
        raise InvalidArgument("this machine streams and multiplies too slowly to be measured")
    flops = {name: max(rates.get(name, 0.0), rates["fp32"]) for name in formats}
    return Peaks(flops, rates["read"], rates["copy"])


def _product(dtype: torch.dtype) -> Work:
    a, b = (torch.ones(_MATMUL_SIDE, _MATMUL_SIDE, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(a, b)
