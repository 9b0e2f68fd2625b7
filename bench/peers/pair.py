"""The two processes of a peer's script: commands in, seconds out."""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

Pieces = list[tuple[int, int]]
Move = Callable[[Pieces, Pieces], None]

TOTAL_BYTES = 256 << 20
PIECE_BYTES = 64 << 10


def pieces(kind: str, seed: int) -> Pieces:
    """``(offset, length)`` of what is moved, in the order of one side."""
    if kind == "contiguous":
        return [(0, TOTAL_BYTES)]
    order = np.random.default_rng(seed).permutation(TOTAL_BYTES // PIECE_BYTES)
    return [(int(i) * PIECE_BYTES, PIECE_BYTES) for i in order]


def some_bytes(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, TOTAL_BYTES, np.uint8)


def run(target: Callable[[Connection], None], initiator: Callable[[Connection], Move]) -> None:
    """`target(connection)` runs in a process of its own on the second core; `initiator` makes,
    from the other end, a function that moves ``[(offset, length)]`` to ``[(offset, length)]``."""
    first, second = (int(core) for core in sys.argv[1:3])
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_on_core, args=(second, target, theirs), daemon=True
    )
    process.start()
    os.sched_setaffinity(0, {first})
    move = initiator(ours)
    plans = {kind: (pieces(kind, 1), pieces(kind, 2)) for kind in ("contiguous", "scattered")}
    for line in sys.stdin:
        source, destination = plans[line.strip()]
        begin = time.perf_counter()
        move(source, destination)
        # Libraries log to standard output; what is meant begins with a mark.
        print("seconds", time.perf_counter() - begin, flush=True)


def _on_core(core: int, target: Callable[[Connection], None], connection: Connection) -> None:
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(EOFError):  # the other end is done
        target(connection)
