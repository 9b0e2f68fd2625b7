"""Latent attention: one row a token for all heads, whichever ranks keep it and in what dtype."""

from __future__ import annotations

from pathlib import Path

import pytest

from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.layout import KVSpec, ParallelLayout
from tests.checkpoints import tiny_checkpoint
from tests.engine_ranks import ThreadedRanks, layout_config, load_ranks
from tests.oracle.harness import BLOCK, Oracle, Running, a_prompt, blocks_at, engine_of, generate


def ranks_of(directory: Path, layout: ParallelLayout, kv_dtype: str = "auto") -> ThreadedRanks:
    settings = PoolConfig.model_validate(
        {"kv_tokens": 1024, "layout": layout_config(layout), "kv_dtype": kv_dtype}
    )
    model = ModelConfig(dtype="float32")
    return ThreadedRanks(load_ranks(directory, model, settings, KVConfig(block_tokens=BLOCK)))


@pytest.fixture(scope="module", params=["deepseek_v2", "deepseek_v3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp(f"latent-{request.param}"))


def test_kv_is_one_latent_and_one_key_a_token(checkpoint: Path) -> None:
    assert engine_of(checkpoint).kv.spec == KVSpec(3, 1, 36 + 8, 0, "float32")
    spec = engine_of(checkpoint, kv_dtype="int8").kv.spec
    assert spec.bytes_per_token == 3 * (36 + 8 + 4)


@pytest.mark.parametrize("layout", [ParallelLayout(tp=4), ParallelLayout(tp=2, pp=3)], ids=str)
def test_every_tensor_rank_keeps_the_same_rows(checkpoint: Path, layout: ParallelLayout) -> None:
    """So any of them may send them, and a rank of any other layout goes on from them."""
    engine, prompt = ranks_of(checkpoint, layout), a_prompt(60)
    first = Running(prompt, blocks_at(3, 70))
    generate(engine, first, 1)
    other = engine_of(checkpoint)
    moved = Running(prompt, blocks_at(11, 70), output=list(first.output), computed=60)
    for rank in engine.ranks:
        layers = rank.kv.shard.layers
        run = bytes(rank.kv.read(first.blocks[:8], layers, range(1), range(60)))
        beside = engine.ranks[layout.stage(rank.rank) * layout.tp].kv
        theirs = bytes(beside.read(first.blocks[:8], layers, range(1), range(60)))
        # Products of the slices are summed alike on all ranks, so rows agree to the bit.
        assert run == theirs
        other.kv.write(moved.blocks[:8], layers, range(1), run, range(60))
    assert generate(other, moved, 6) == Oracle(checkpoint).generate(prompt, 6)


def test_kv_stored_narrow_moves_narrow(checkpoint: Path) -> None:
    """A quantized engine's canonical bytes go on in another quantized engine, token by token."""
    prompt = a_prompt(40)
    one, other = (engine_of(checkpoint, kv_dtype="int8") for _ in range(2))
    alone = Running(prompt, blocks_at(0, 60))
    generate(one, alone, 6)
    moved = Running(prompt, blocks_at(30, 60), output=alone.output[:1], computed=40)
    other.kv.write(
        moved.blocks[:5], range(3), range(1), one.kv.read(alone.blocks[:5], range(3), range(1))
    )
    assert generate(other, moved, 6) == alone.output
