"""Every layout gives the tokens of transformers: tensor and pipeline parallel, and groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from tests.checkpoints import tiny_checkpoint
from tests.engine_ranks import ThreadedRanks, layout_config, load_ranks, together
from tests.models import default_model_dir
from tests.oracle.harness import BLOCK, Oracle, Running, a_prompt, advance, blocks_at, generate

LAYOUTS = [
    ParallelLayout(tp=2),
    ParallelLayout(tp=4),
    ParallelLayout(pp=2),
    ParallelLayout(pp=3),
    ParallelLayout(tp=2, pp=2),
    ParallelLayout(dp=2),
    ParallelLayout(tp=2, dp=2),
    ParallelLayout(pp=2, dp=2),
]
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}


def ranks_of(directory: Path, layout: ParallelLayout, **pool: object) -> ThreadedRanks:
    settings = PoolConfig.model_validate(
        {"kv_tokens": 1024, "layout": layout_config(layout), **pool}
    )
    model = ModelConfig(dtype="float32")
    return ThreadedRanks(load_ranks(directory, model, settings, KVConfig(block_tokens=BLOCK)))


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "mistral"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(f"layouts-{request.param}")
    return tiny_checkpoint(request.param, directory, **SIZES)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tokens_are_those_of_transformers(
    checkpoint: Path, oracle: Oracle, layout: ParallelLayout
) -> None:
    engine = ranks_of(checkpoint, layout)
    blocks = engine.kv.num_blocks
    # One sequence in each group, prompts in chunks beside decode steps.
    sequences = [
        Running(a_prompt(40 + 9 * i, seed=i), blocks_at(i % layout.dp * blocks + 30 * i, 80))
        for i in range(3)
    ]
    while min(len(s.output) for s in sequences) < 6:
        advance(engine, sequences, chunk=17)
    for sequence in sequences:
        expected = oracle.generate(sequence.prompt, len(sequence.output))
        assert sequence.output == expected


@pytest.mark.parametrize("layout", [ParallelLayout(tp=3), ParallelLayout(tp=6, pp=2)], ids=str)
def test_kv_heads_are_kept_by_several_ranks_where_there_are_more_ranks(
    tmp_path: Path, layout: ParallelLayout
) -> None:
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96,
             "intermediate_size": 96}  # fmt: skip
    directory = tiny_checkpoint("llama", tmp_path, **sizes)
    engine = ranks_of(directory, layout)
    prompt = a_prompt(40)
    output = generate(engine, Running(prompt, blocks_at(3, 60)), 6)
    assert output == Oracle(directory).generate(prompt, 6)


def test_progress_names_every_layer_for_every_token(tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama", tmp_path, **SIZES)
    engine = ranks_of(directory, ParallelLayout(pp=2))
    seen: dict[int, list[tuple[range, list[int]]]] = {0: [], 1: []}
    row = Running(a_prompt(90), blocks_at(0, 90)).row(90)

    together(
        [
            lambda r=rank: r.step([row], lambda part, ends: seen[r.rank].append((part, list(ends))))  # type: ignore[misc]
            for rank in engine.ranks
        ]
    )
    for rank in engine.ranks:
        layers = rank.kv.shard.layers
        assert {layer for part, ends in seen[rank.rank] if ends == [90] for layer in part} == set(
            layers
        )
        assert len(seen[rank.rank]) > 1, "several micro-batches"


@pytest.mark.parametrize(
    ("layout", "wrong"),
    [
        (ParallelLayout(tp=3), "tp=3 does not fit 4 heads"),
        (ParallelLayout(pp=4), "pp=4 exceeds 3 layers"),
        (ParallelLayout(ep=2), "ep=2 is for mixtures of experts"),
    ],
    ids=str,
)
def test_a_layout_that_does_not_fit_is_refused_with_those_that_do(
    tmp_path: Path, layout: ParallelLayout, wrong: str
) -> None:
    directory = tiny_checkpoint("llama", tmp_path, **SIZES)
    with pytest.raises(ConfigError, match=wrong) as refused:
        ranks_of(directory, layout)
    assert "tp 1, 2, 4; pp 1 to 3" in refused.value.message


@pytest.mark.parametrize(
    "layout",
    [ParallelLayout(tp=3), ParallelLayout(pp=2), ParallelLayout(pp=3), ParallelLayout(tp=3, pp=2)],
    ids=str,
)
def test_the_default_model_is_the_same_in_every_layout(
    layout: ParallelLayout,
) -> None:
    prompt, directory = a_prompt(30), default_model_dir()
    alone = ranks_of(directory, ParallelLayout())
    split = ranks_of(directory, layout)
    expected = generate(alone, Running(prompt, blocks_at(0, 60)), 5)
    assert generate(split, Running(prompt, blocks_at(2, 60)), 5) == expected
