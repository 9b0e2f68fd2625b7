"""Weights in FP8 with a scale for each block compute what transformers computes with the weights
that they stand for, whatever part of a block a rank keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.layout import ParallelLayout
from tests.checkpoints import in_fp8, tiny_checkpoint
from tests.engine_ranks import ThreadedRanks, layout_config, load_ranks
from tests.oracle.harness import BLOCK, Oracle, Running, a_prompt, blocks_at, engine_of, generate
from tests.oracle.test_logits import largest_difference

# Blocks that hold whole matrices, as those of the published size do here; that end within heads,
# experts and ranks' shares; and that are single rows.
BLOCKS = [(128, 128), (24, 40), (1, 16)]
ARCHITECTURES = ("llama", "qwen3_moe", "deepseek_v2", "deepseek_v3")
LAYOUTS = [
    ParallelLayout(tp=2),
    ParallelLayout(tp=4, ep=2),
    ParallelLayout(pp=3),
    ParallelLayout(tp=2, dp=2, ep=4),
]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_the_dequantised_weights(
    architecture: str, block: tuple[int, int], tmp_path: Path
) -> None:
    plain = tiny_checkpoint(architecture, tmp_path / "plain")
    published = in_fp8(plain, tmp_path / "fp8", block)
    assert largest_difference(published, "float32", Oracle(plain)) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_rank_takes_the_scales_of_its_own_rows_and_columns(
    layout: ParallelLayout, tmp_path: Path
) -> None:
    plain = tiny_checkpoint("deepseek_v3", tmp_path / "plain")
    published = in_fp8(plain, tmp_path / "fp8", (24, 40))
    pool = PoolConfig.model_validate({"kv_tokens": 1024, "layout": layout_config(layout)})
    model = ModelConfig(dtype="float32")
    ranks = ThreadedRanks(load_ranks(published, model, pool, KVConfig(block_tokens=BLOCK)))
    prompt = a_prompt(40)
    output = generate(ranks, Running(prompt, blocks_at(3, 60)), 6)
    assert output == Oracle(plain).generate(prompt, 6)


def test_narrower_activations_see_the_weights_rounded_once(tmp_path: Path) -> None:
    plain = tiny_checkpoint("deepseek_v3", tmp_path / "plain")
    published = in_fp8(plain, tmp_path / "fp8", (24, 40))
    prompt = a_prompt(30)
    ours, theirs = (
        generate(engine_of(directory, "bfloat16"), Running(prompt, blocks_at(0, 50)), 6)
        for directory in (published, plain)
    )
    assert ours == theirs
