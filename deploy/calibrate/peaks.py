"""What one process's share of the machine computes and streams at best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from deploy.calibrate.repeated import Effort, Progress, Work, interleaved
from eastwest.clock import Clock
from eastwest.errors import InvalidArgument

# Large enough for full speed, and for less than a tenth of a second on one core.
_MATMUL_SIDE = 1536
# Several times any last-level cache that one process has to itself.
_STREAM_SIDE = 8192
_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Peaks:
    """flops_per_s: of large products, by number format. read_bytes_per_s: of memory that is only
    read. copy_bytes_per_s: from memory to memory, each byte counted once."""

    flops_per_s: Mapping[str, float]
    read_bytes_per_s: float
    copy_bytes_per_s: float


def measure_peaks(
    formats: Sequence[str], threads: int, clock: Clock, effort: Effort, progress: Progress
) -> Peaks:
    """With so many threads. formats: fp32, and others of `planner.precision`.

    A format that the machine has no arithmetic for can be widened, so none is slower than fp32.
    Raises `InvalidArgument` where the machine is too slow for the effort.
    """
    torch.set_num_threads(threads)
    with torch.inference_mode():
        matrix = torch.ones(_STREAM_SIDE, _STREAM_SIDE)
        vector, target = torch.ones(_STREAM_SIDE), torch.empty_like(matrix)
        size = matrix.nbytes
        # Bytes or FLOPs, and what moves or computes them. Sums and products with a vector both
        # read all of the matrix; which one is faster depends on the machine.
        works: list[tuple[str, float, Work]] = [
            ("copy", size, lambda: target.copy_(matrix)),
            ("read", size, matrix.sum),
            ("read", size, lambda: torch.mv(matrix, vector)),
        ]
        works += [(name, 2.0 * _MATMUL_SIDE**3, _product(_FORMATS[name])) for name in formats]
        times = interleaved([work for _, _, work in works], clock, effort, progress)
    rates: dict[str, float] = {}
    for (name, amount, _), taken in zip(works, times, strict=True):
        if taken:
            rates[name] = max(rates.get(name, 0.0), amount / min(taken))
    if not {"fp32", "read", "copy"} <= set(rates):
        raise InvalidArgument(
            f"this machine streams and multiplies too slowly to be measured in {effort.budget_s} s"
        )
    flops = {name: max(rates.get(name, 0.0), rates["fp32"]) for name in formats}
    return Peaks(flops, rates["read"], rates["copy"])


def _product(dtype: torch.dtype) -> Work:
    a, b = (torch.ones(_MATMUL_SIDE, _MATMUL_SIDE, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(a, b)
