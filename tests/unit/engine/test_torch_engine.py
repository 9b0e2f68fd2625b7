"""Starting an engine: what is refused and in which words; and the habits of its step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.errors import ConfigError, ModelError
from eastwest.layout import ParallelLayout
from eastwest.ports import Engine, KVMemory, SampleInput, StepRow
from eastwest.types import SamplingParams
from engine.architecture import ArchitectureConfig
from engine.checkpoint import open_checkpoint
from engine.linear import cpu_computes_bfloat16
from engine.rank_slice import RankSlice
from engine.torch_engine import TorchEngine, load_engine
from tests.checkpoints import CONTEXT, VOCAB, tiny_checkpoint

PROMPT = tuple(range(3, 40))


def start(directory: Path, pool: PoolConfig | None = None, **model: Any) -> TorchEngine:
    settings = ModelConfig.model_validate({"source": "tiny", "dtype": "float32", **model})
    return load_engine(directory, settings, pool or PoolConfig(kv_tokens=256), KVConfig())


def a_row(**params: Any) -> StepRow:
    sample = SampleInput(SamplingParams(**{"seed": 3, **params}), PROMPT, ())
    return StepRow(PROMPT, 0, range(3), sample)


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_an_engine_describes_itself(tmp_path: Path) -> None:
    engine = start(tiny_checkpoint("llama", tmp_path))
    port: Engine = engine
    memory: KVMemory = port.kv
    assert (memory.num_blocks, memory.block_tokens) == (16, 16)
    info = engine.model
    assert (info.name, info.architecture, info.dtype) == ("tiny", "LlamaForCausalLM", "float32")
    assert (info.context_tokens, info.vocab_size, info.eos_ids) == (CONTEXT, VOCAB, (2,))
    assert info.kv == memory.spec
    assert engine.layout == ParallelLayout()


def test_what_changes_kv_changes_the_fingerprint(tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama", tmp_path / "a")
    other = tiny_checkpoint("llama", tmp_path / "b", seed=1)
    prints = [
        start(directory).model.fingerprint,
        start(directory, dtype="bfloat16").model.fingerprint,
        start(directory, quantization="int8").model.fingerprint,
        start(other).model.fingerprint,
    ]
    assert len(set(prints)) == 4
    assert start(directory, source="elsewhere").model.fingerprint == prints[0]


def test_auto_takes_what_the_cpu_computes_in(tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama", tmp_path)
    expected = "bfloat16" if cpu_computes_bfloat16() or torch.cuda.is_available() else "float32"
    assert start(directory, dtype="auto").model.dtype == expected
    assert start(directory, dtype="auto", quantization="int8").model.dtype == "bfloat16"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_tensor_of_a_wrong_shape_is_named(architecture: str, tmp_path: Path) -> None:
    directory = tiny_checkpoint(architecture, tmp_path)
    edit_config(directory, intermediate_size=113)
    with pytest.raises(ModelError, match=r"layers.0.mlp.gate_proj.weight has shape \[112, .*113"):
        start(directory)


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.q_proj.bias", "model.norm.weight"])
def test_an_absent_tensor_is_named(name: str, tmp_path: Path) -> None:
    directory = tiny_checkpoint("qwen2", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    del tensors[name]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ModelError, match=f"no tensor '{name}'"):
        start(directory)


def test_too_small_a_pool_is_refused(tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama", tmp_path)
    with pytest.raises(ConfigError, match="kv_tokens is 31, which is 1 blocks of 16; allowed: at"):
        start(directory, PoolConfig(kv_tokens=31))


@pytest.mark.parametrize("eos", ["2", [2, VOCAB], True])
def test_a_bad_end_token_is_refused(eos: object, tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama", tmp_path)
    edit_config(directory, eos_token_id=eos)
    (directory / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=r"eos_token_id is .*; allowed: one id or a list"):
        start(directory)


def test_generation_config_has_the_say_on_end_tokens(tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama", tmp_path)
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert start(directory).model.eos_ids == (5, 6)
    (directory / "generation_config.json").write_text("[]")
    with pytest.raises(ModelError, match="allowed: a JSON object"):
        start(directory)


def test_rows_that_do_not_sample_answer_none(tmp_path: Path) -> None:
    engine = start(tiny_checkpoint("llama", tmp_path))
    silent = StepRow(PROMPT, 0, range(4, 7), None)
    first, second, third = engine.step([silent, a_row(), silent])
    assert first is None
    assert second is not None
    assert third is None
    assert engine.step([silent]) == [None]
    assert engine.step([]) == []


def test_a_seeded_token_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    engine = start(tiny_checkpoint("llama", tmp_path))
    alone = engine.step([a_row()])
    other = StepRow(PROMPT[:9], 0, [9], SampleInput(SamplingParams(seed=8), PROMPT[:9], ()))
    assert engine.step([other, a_row()])[1:] == alone


def test_rows_beyond_their_blocks_or_the_context_are_caught(tmp_path: Path) -> None:
    engine = start(tiny_checkpoint("llama", tmp_path), PoolConfig(kv_tokens=1024))
    with pytest.raises(AssertionError, match="blocks must cover"):
        engine.step([StepRow(PROMPT, 0, [0], None)])
    with pytest.raises(AssertionError, match="beyond the model's context"):
        engine.step([StepRow((1,), CONTEXT, range(CONTEXT // 16 + 1), None)])


def test_closing_is_idempotent_and_ends_steps(tmp_path: Path) -> None:
    engine = start(tiny_checkpoint("llama", tmp_path))
    engine.close()
    engine.close()
    with pytest.raises(AssertionError, match="closed"):
        engine.step([a_row()])


def test_an_open_engine_does_not_keep_the_checkpoint_mapped_as_a_whole(tmp_path: Path) -> None:
    engine = start(tiny_checkpoint("llama", tmp_path))
    expected = engine.step([a_row()])
    for path in tmp_path.iterdir():
        path.unlink()
    assert engine.step([a_row()]) == expected


def test_a_layout_that_does_not_divide_the_model_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama", tmp_path))
    config = ArchitectureConfig.from_hf(checkpoint.config)
    with pytest.raises(ConfigError, match="tp=4 does not fit 6 heads"):
        RankSlice.of(config, ParallelLayout(tp=4), 0)
