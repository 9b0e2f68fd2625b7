"""Mixtures of experts and latent attention give the tokens of transformers in every layout."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from engine.architecture import ArchitectureConfig
from engine.checkpoint import open_checkpoint
from engine.rank_slice import RankSlice
from tests.checkpoints import EXPERTS, SIXES, tiny_checkpoint
from tests.engine_ranks import ThreadedRanks, layout_config, load_ranks
from tests.oracle.harness import BLOCK, Oracle, Running, a_prompt, advance, blocks_at, generate

LAYOUTS = [
    ParallelLayout(tp=2),
    ParallelLayout(tp=4),
    ParallelLayout(pp=2),
    ParallelLayout(dp=2),
    ParallelLayout(tp=2, ep=2),
    ParallelLayout(tp=4, ep=2),
    ParallelLayout(tp=4, ep=4),
    ParallelLayout(dp=2, ep=2),
    ParallelLayout(dp=4, ep=4),
    ParallelLayout(tp=2, dp=2, ep=2),
    ParallelLayout(tp=2, dp=2, ep=4),
    ParallelLayout(tp=2, pp=2, ep=2),
    ParallelLayout(pp=2, dp=2, ep=2),
]
THIRDS = [
    ParallelLayout(pp=3),
    ParallelLayout(tp=2, pp=3, ep=2),
    ParallelLayout(tp=3),
    ParallelLayout(tp=3, ep=3),
    ParallelLayout(tp=3, pp=3),
    ParallelLayout(dp=3, ep=3),
    ParallelLayout(tp=3, dp=2, ep=2),
    ParallelLayout(tp=6, ep=2),
]
LENGTHS = (40, 49, 5)
NEW = 5


def ranks_of(directory: Path, layout: ParallelLayout) -> ThreadedRanks:
    settings = PoolConfig.model_validate({"kv_tokens": 1024, "layout": layout_config(layout)})
    model = ModelConfig(dtype="float32")
    return ThreadedRanks(load_ranks(directory, model, settings, KVConfig(block_tokens=BLOCK)))


@pytest.fixture(scope="module", params=EXPERTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp(f"layouts-{request.param}"))


@pytest.fixture(scope="module")
def truth(checkpoint: Path) -> list[list[int]]:
    return outputs_of_transformers(checkpoint)


@pytest.fixture(scope="module", params=SIXES)
def in_sixes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    return tiny_checkpoint(name, tmp_path_factory.mktemp(f"sixes-{name}"), **SIXES[name])


@pytest.fixture(scope="module")
def truth_in_sixes(in_sixes: Path) -> list[list[int]]:
    return outputs_of_transformers(in_sixes)


def outputs_of_transformers(directory: Path) -> list[list[int]]:
    oracle = Oracle(directory)
    return [oracle.generate(a_prompt(length, i), 2 * NEW) for i, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tokens_are_those_of_transformers(
    checkpoint: Path, truth: list[list[int]], layout: ParallelLayout
) -> None:
    check_tokens(checkpoint, truth, layout)


@pytest.mark.parametrize("layout", THIRDS, ids=str)
def test_thirds_of_layers_heads_and_experts_give_the_same_tokens(
    in_sixes: Path, truth_in_sixes: list[list[int]], layout: ParallelLayout
) -> None:
    check_tokens(in_sixes, truth_in_sixes, layout)


def check_tokens(checkpoint: Path, truth: list[list[int]], layout: ParallelLayout) -> None:
    engine = ranks_of(checkpoint, layout)
    blocks = engine.kv.num_blocks
    # Prompts in chunks beside decode steps; a group may have several sequences, one or none.
    sequences = [
        Running(a_prompt(length, i), blocks_at(i % layout.dp * blocks + 30 * i, 80))
        for i, length in enumerate(LENGTHS)
    ]
    while min(len(s.output) for s in sequences) < NEW:
        advance(engine, [s for s in sequences if len(s.output) < 2 * NEW], chunk=17)
    for sequence, expected in zip(sequences, truth, strict=True):
        assert sequence.output == expected[: len(sequence.output)]


@pytest.mark.parametrize(
    "layout", [ParallelLayout(dp=2, ep=2), ParallelLayout(pp=2, dp=2, ep=2)], ids=str
)
def test_groups_of_very_different_work_wait_for_each_other(
    tmp_path: Path, layout: ParallelLayout
) -> None:
    """One group decodes, or does nothing, while another takes several tiles of a prompt."""
    directory = tiny_checkpoint("deepseek_v3", tmp_path, max_position_embeddings=1024)
    engine, oracle = ranks_of(directory, layout), Oracle(directory)
    blocks = engine.kv.num_blocks
    short, long = Running(a_prompt(3), blocks_at(4, 60)), Running(a_prompt(700), [])
    long.blocks = blocks_at(blocks, 720)
    assert generate(engine, short, 2) == oracle.generate(short.prompt, 2)
    advance(engine, [long, short], chunk=700)
    assert generate(engine, long, 3) == oracle.generate(long.prompt, 3)
    assert generate(engine, short, 4) == oracle.generate(short.prompt, 4)


@pytest.mark.parametrize(
    ("layout", "wrong"),
    [
        (ParallelLayout(tp=3), "tp=3 does not fit 4 heads, 2 KV heads, experts of 48 ffn rows"),
        (ParallelLayout(tp=2, ep=4), "ep=4 does not fit 8 experts of 48 ffn rows over tp=2 and dp"),
        (ParallelLayout(pp=4, ep=1), "pp=4 exceeds 3 layers"),
    ],
    ids=str,
)
def test_shares_of_experts_that_do_not_fit_are_refused_with_those_that_do(
    tmp_path: Path, layout: ParallelLayout, wrong: str
) -> None:
    directory = tiny_checkpoint("mixtral", tmp_path)
    config = ArchitectureConfig.from_hf(open_checkpoint(directory).config)
    with pytest.raises(ConfigError, match=wrong) as refused:
        RankSlice.of(config, layout, 0)
    assert (
        "allowed for this model: tp 1, 2, 4; pp 1 to 3; "
        "ep 1 at tp=1, 1 or 2 at tp=2, 1 or 2 or 4 at tp=4 (dp=1); any dp"
    ) in refused.value.message


@pytest.mark.parametrize(
    "layout", [ParallelLayout(tp=2, ep=4), ParallelLayout(dp=4, ep=2), ParallelLayout(tp=4, ep=3)],
    ids=str,
)  # fmt: skip
def test_ranks_that_cannot_be_divided_into_shares_do_not_connect(
    tmp_path: Path, layout: ParallelLayout
) -> None:
    with pytest.raises(ConfigError, match=r"does not fit .*; allowed: 1, or dp times a divisor"):
        ranks_of(tiny_checkpoint("mixtral", tmp_path), layout)


@pytest.mark.parametrize("architecture", EXPERTS)
def test_every_layout_that_is_said_to_fit_holds_each_part_of_the_experts_once(
    architecture: str, tmp_path: Path
) -> None:
    config = ArchitectureConfig.from_hf(
        open_checkpoint(tiny_checkpoint(architecture, tmp_path)).config
    )
    moe = config.moe
    assert moe is not None
    fitting = 0
    for tp, ep, dp in product((1, 2, 3, 4), (1, 2, 3, 4, 6, 8), (1, 2, 4)):
        layout = ParallelLayout(tp=tp, ep=ep, dp=dp)
        try:
            parts = [RankSlice.of(config, layout, rank) for rank in range(layout.world_size)]
        except ConfigError:
            continue
        fitting += 1
        cells = Counter(
            (expert, row) for part in parts for expert in part.experts for row in part.expert_ffn
        )
        copies = dp if ep == 1 else 1
        assert set(cells) == set(product(range(moe.num_experts), range(moe.ffn_size)))
        assert set(cells.values()) == {copies}
    assert fitting >= 12
