"""Experts over several ranks compute what one rank computes, wherever each of them is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed

from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.layout import KVSpec, ParallelLayout, Shard
from engine.architecture import ArchitectureConfig
from engine.checkpoint import Checkpoint, open_checkpoint
from engine.comm import Comm
from engine.experts import ExpertFeedForward
from engine.kv_memory import TorchKVMemory
from engine.layers import FeedForward
from engine.linear import DenseLinear
from engine.process_groups import connect
from engine.rank_slice import RankSlice
from engine.torch_engine import TorchEngine, load_engine
from engine.weights import WeightLoader
from tests.checkpoints import EXPERTS, tiny_checkpoint
from tests.engine_ranks import ThreadedRanks, layout_config, load_ranks, together
from tests.oracle.harness import BLOCK, Oracle, Running, a_prompt, blocks_at, engine_of, generate

CPU = torch.device("cpu")
LOADS = (50, 1, 2, 40, 30, 3, 20, 4)
LAYOUTS = [
    ParallelLayout(tp=2),
    ParallelLayout(tp=2, ep=2),
    ParallelLayout(tp=4, ep=2),
    ParallelLayout(dp=2, ep=2),
    ParallelLayout(tp=2, dp=2, ep=4),
]


class Reading:
    """A checkpoint that remembers which tensors were read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.read: list[str] = []

    def names(self) -> frozenset[str]:
        return self._checkpoint.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(name)

    def dtype(self, name: str) -> str:
        return self._checkpoint.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        self.read.append(name)
        return self._checkpoint.tensor(name)


@pytest.fixture(scope="module", params=EXPERTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp(f"experts-{request.param}"))


def mixture(
    source: Reading, layout: ParallelLayout, rank: int, comm: Comm, loads: Sequence[int] | None
) -> FeedForward:
    """The last layer's experts, as one rank has them."""
    config = ArchitectureConfig.from_hf(source._checkpoint.config)
    part = RankSlice.of(config, layout, rank, loads)
    spec = KVSpec(config.num_layers, 1, 1, 1, "float32")
    kv = TorchKVMemory(spec, Shard(part.layers, range(1)), 1, 1, CPU)
    loader = WeightLoader(source, config, part, torch.float32, CPU, DenseLinear, kv, comm)
    loader.check()
    return list(loader.layers())[-1].ffn


def over_ranks(
    layout: ParallelLayout, of: Callable[[int, Comm], torch.Tensor]
) -> list[torch.Tensor]:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    return together(
        [lambda r=rank: of(r, connect(store, layout, r, CPU)) for rank in range(layout.world_size)]  # type: ignore[misc]
    )


@pytest.mark.parametrize("loads", [None, LOADS], ids=["contiguous", "balanced"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_together_compute_what_one_computes(
    checkpoint: Path, layout: ParallelLayout, loads: Sequence[int] | None
) -> None:
    source = Reading(open_checkpoint(checkpoint))
    alone = mixture(source, ParallelLayout(), 0, Comm.alone(), None)
    # Groups have tokens of their own, of very different numbers, and at last none at all.
    batches = [[torch.randn(count, 64) for count in counts] for counts in ((5, 1), (1, 33), (7, 0))]
    exact = [[hidden.clone() for hidden in batch] for batch in batches]
    for batch in exact:
        for hidden in batch[: layout.dp]:
            alone.add_to(hidden)

    def on_rank(rank: int, comm: Comm) -> torch.Tensor:
        ours = mixture(source, layout, rank, comm, loads)
        for batch, expected in zip(batches, exact, strict=True):
            hidden = batch[layout.group(rank)].clone()
            if len(hidden) or ours.exchanges:
                ours.add_to(hidden)
            torch.testing.assert_close(hidden, expected[layout.group(rank)], atol=2e-5, rtol=1e-5)
        computed = ours.expert_loads()
        assert computed is not None
        return computed

    computed = over_ranks(layout, on_rank)
    total = alone.expert_loads()
    assert total is not None
    # Each slice of an expert counts the pairs of the whole.
    slices = layout.tp * layout.dp // layout.ep if layout.ep > 1 else layout.tp
    assert sum(int(load.sum()) for load in computed) == slices * int(total.sum())


def test_only_the_experts_kept_are_read(checkpoint: Path) -> None:
    layout = ParallelLayout(tp=2, ep=2)

    def read_by(rank: int, comm: Comm) -> torch.Tensor:
        source = Reading(open_checkpoint(checkpoint))
        assert isinstance(mixture(source, layout, rank, comm, LOADS), ExpertFeedForward)
        read = {int(n.split(".experts.")[1].split(".")[0]) for n in source.read if ".experts." in n}
        return torch.tensor(sorted(read))

    # Loads of 50, 20, 4 and 1 against 40, 30, 3 and 2.
    assert [kept.tolist() for kept in over_ranks(layout, read_by)] == [[0, 1, 6, 7], [2, 3, 4, 5]]


def test_an_engine_counts_what_its_experts_compute(checkpoint: Path) -> None:
    config = ArchitectureConfig.from_hf(open_checkpoint(checkpoint).config)
    assert config.moe is not None
    engine = engine_of(checkpoint)
    assert engine.expert_tokens == (0,) * 8
    generate(engine, Running(a_prompt(20), blocks_at(0, 30)), 1)
    # Of the last layer only the token that is sampled goes through the network.
    full = sum(config.moe.sparse[:-1]) * 20 + config.moe.sparse[-1]
    assert sum(engine.expert_tokens) == full * config.moe.top_k


def test_a_stage_of_dense_layers_has_computed_nothing_with_its_experts(tmp_path: Path) -> None:
    directory = tiny_checkpoint("deepseek_v2", tmp_path, first_k_dense_replace=2)
    pool = PoolConfig.model_validate({"kv_tokens": 1024, "layout": {"pp": 2}})
    model = ModelConfig(dtype="float32")
    ranks = load_ranks(directory, model, pool, KVConfig(block_tokens=BLOCK))
    generate(ThreadedRanks(ranks), Running(a_prompt(20), blocks_at(0, 30)), 3)
    dense, sparse = (rank.expert_tokens for rank in ranks)
    assert dense == (0,) * 8
    # The last layer's network computes one token a step.
    assert sum(sparse) == 3 * 3


def test_a_replica_may_place_experts_by_what_they_had_to_do(checkpoint: Path) -> None:
    layout = ParallelLayout(tp=2, ep=2)
    prompt = a_prompt(30)
    pool = PoolConfig.model_validate({"kv_tokens": 1024, "layout": layout_config(layout)})

    def load(rank: int, comm: Comm) -> TorchEngine:
        model, kv = ModelConfig(dtype="float32"), KVConfig(block_tokens=BLOCK)
        return load_engine(checkpoint, model, pool, kv, rank=rank, comm=comm, expert_loads=measured)

    alone = engine_of(checkpoint)
    expected = generate(alone, Running(prompt, blocks_at(0, 40)), 5)
    measured = alone.expert_tokens
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    ranks = together(
        [lambda r=rank: load(r, connect(store, layout, r, CPU)) for rank in range(2)]  # type: ignore[misc]
    )
    output = generate(ThreadedRanks(ranks), Running(prompt, blocks_at(2, 40)), 5)
    assert output == expected == Oracle(checkpoint).generate(prompt, 5)
    assert sum(sum(rank.expert_tokens) for rank in ranks) == sum(measured)
    most = max(sum(rank.expert_tokens) for rank in ranks)
    assert most - sum(measured) / 2 <= max(measured)
