"""Groups of ranks over torch.distributed: gloo on CPUs, NCCL on CUDA, chosen at run time.

Process groups are plain objects here, without torch's global state, so that several ranks can be
threads of one process. The NCCL side shares everything but the constructor and has not been run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

from eastwest.errors import Unavailable
from eastwest.layout import ParallelLayout
from engine.comm import Alone, Comm, Group
from engine.rank_slice import expert_share

TIMEOUT_S = 120.0
# Sends that may be under way at once: micro-batches on their way to the next stage.
SENDS_MAX = 8

T = TypeVar("T")
Store = Any  # a torch.distributed store, whose types torch does not export
dist: Any = torch.distributed


def open_rendezvous(host: str) -> tuple[Store, str]:
    """Where the ranks of one replica meet, made by its leader; and its ``host:port``."""
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return store, f"{host}:{store.port}"


def join_rendezvous(address: str) -> Store:
    """The same, for all others. Raises `Unavailable` where nobody listens."""
    host, _, port = address.rpartition(":")
    timeout = timedelta(seconds=TIMEOUT_S)
    return _typed(
        f"the rendezvous at {address}",
        lambda: dist.TCPStore(host, int(port), is_master=False, timeout=timeout),
    )


def connect(store: Store, layout: ParallelLayout, rank: int, device: torch.device) -> Comm:
    """The groups of one rank; there when all their members have come.

    Experts are exchanged within a group of `ep` ranks of one stage; see `ParallelLayout`. Raises
    `ConfigError` where ranks cannot be divided so.
    """
    stage, tp_rank = layout.stage(rank), layout.tp_rank(rank)
    first = rank - tp_rank
    tensor = range(first, first + layout.tp)
    _, slices = expert_share(layout, rank)
    shares = layout.tp // slices
    share, part = divmod(tp_rank, slices)
    experts: Sequence[int] = (rank,)
    if layout.ep > 1:
        experts = [
            (g * layout.pp + stage) * layout.tp + u * slices + part
            for g in range(layout.dp)
            for u in range(shares)
        ]

    def make(name: str, ranks: Sequence[int]) -> Group:
        if len(ranks) == 1:
            return Alone()
        named = dist.PrefixStore(f"{name}/{'.'.join(map(str, ranks))}", store)
        return ProcessGroup(name, named, list(ranks).index(rank), len(ranks), device)

    return Comm(
        make("tensor", tensor),
        make("experts", experts),
        make("world", range(layout.world_size)),
        share,
        shares,
    )


class ProcessGroup:
    """Is a `Group`. A call that fails ends with `Unavailable`."""

    def __init__(self, name: str, store: Store, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self._name = f"the {name} group of {size} ranks"
        timeout = timedelta(seconds=TIMEOUT_S)
        kind = dist.ProcessGroupNCCL if device.type == "cuda" else dist.ProcessGroupGloo
        self._group = _typed(self._name, lambda: kind(store, rank, size, timeout))
        self._sends: deque[tuple[Any, torch.Tensor]] = deque()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self._wait(lambda: self._group.allreduce([tensor]))

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        self._wait(lambda: self._group.allgather([gathered], [tensor]))
        return gathered

    def all_to_all(
        self, rows: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> torch.Tensor:
        result = rows.new_empty((sum(received), *rows.shape[1:]))
        self._wait(
            lambda: self._group.alltoall_base(
                result, rows, list(received), list(sent), dist.AllToAllOptions()
            )
        )
        return result

    def send(self, tensor: torch.Tensor, to: int) -> None:
        if len(self._sends) == SENDS_MAX:
            work, _ = self._sends.popleft()
            _typed(self._name, work.wait)
        kept = tensor.contiguous()
        self._sends.append((_typed(self._name, lambda: self._group.send([kept], to, 0)), kept))

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        self._wait(lambda: self._group.recv([tensor], source, 0))

    def _wait(self, begin: Callable[[], Any]) -> None:
        _typed(self._name, lambda: begin().wait())


def _typed(what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except RuntimeError as error:
        lines = str(error).splitlines() or ["no reason given"]
        raise Unavailable(f"{what} has failed: {lines[0]}") from error
