"""Ranks of a torch engine as threads of one process: real collectives, no processes to start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed

from eastwest.config import KVConfig, LayoutConfig, ModelConfig, PoolConfig
from eastwest.layout import ParallelLayout
from eastwest.ports import StepRow
from eastwest.types import SampledToken
from engine.process_groups import connect
from engine.torch_engine import TorchEngine, load_engine

T = TypeVar("T")


def layout_config(layout: ParallelLayout) -> LayoutConfig:
    return LayoutConfig(tp=layout.tp, pp=layout.pp, ep=layout.ep, dp=layout.dp)


def load_ranks(
    directory: Path, model: ModelConfig, pool: PoolConfig, kv: KVConfig
) -> list[TorchEngine]:
    """All ranks of ``pool.layout``, joined with each other."""
    layout = pool.layout.layout()
    if layout.world_size == 1:
        return [load_engine(directory, model, pool, kv)]
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]

    def load(rank: int) -> TorchEngine:
        comm = connect(store, layout, rank, torch.device("cpu"))
        return load_engine(directory, model, pool, kv, rank=rank, comm=comm)

    return together([lambda rank=rank: load(rank) for rank in range(layout.world_size)])  # type: ignore[misc]


def together(work: Sequence[Callable[[], T]]) -> list[T]:
    """Each in a thread of its own; raises the first error when all have ended."""
    with ThreadPoolExecutor(len(work)) as threads:
        futures = [threads.submit(function) for function in work]
    return [future.result() for future in futures]


class ThreadedRanks:
    """All ranks behind the face of one engine, for tests that drive an engine by hand."""

    def __init__(self, ranks: Sequence[TorchEngine]) -> None:
        self.ranks = ranks
        leader = ranks[ranks[0].layout.leader]
        self.model, self.layout, self.kv = leader.model, leader.layout, leader.kv
        self._leader = leader

    def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        results: list[list[SampledToken | None]] = together(
            [lambda e=engine: e.step(rows) for engine in self.ranks]  # type: ignore[misc]
        )
        return results[self._leader.rank]
