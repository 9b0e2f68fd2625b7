"""`eastwest layouts explain`: who sends what to whom, from a config.json alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from deploy.layouts import explain_pair, read_layout
from eastwest.config import Config
from eastwest.errors import ConfigError, ModelError
from eastwest.layout import ParallelLayout

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 256,
    "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 6,
    "vocab_size": 1000, "max_position_embeddings": 512, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    return str(tmp_path)


def explained(model: str, prefill: str, decode: str, config: Config | None = None) -> str:
    text = io.StringIO()
    Console(width=200, file=text).print(explain_pair(config or Config(), model, prefill, decode))
    return text.getvalue()


def test_the_plan_says_who_sends_how_much_and_that_it_is_the_least(model: str) -> None:
    text = explained(model, "tp=4", "pp=2,tp=2")
    assert "KV of 6 layers x 4 heads of 16 + 16" in text
    assert "prefill tp=4: 4 ranks, bfloat16" in text
    # 6 layers, 4 heads, 16 + 16 numbers of 2 bytes.
    assert "in all 1,536 bytes a token: each byte of each decode rank once" in text
    assert "0-2 x 0" in text


def test_replicated_heads_are_counted(model: str) -> None:
    text = explained(model, "tp=1", "tp=8")
    assert "in all 3,072 bytes a token: each byte of each decode rank once, 2 copies" in text


def test_a_side_with_another_dtype_is_named(model: str) -> None:
    config = Config.model_validate({"decode": {"kv_dtype": "int8", "block_tokens": 64}})
    text = explained(model, "tp=2", "tp=4", config)
    assert "prefill converts bfloat16 to int8 before it sends" in text
    assert "decode  tp=4: 4 ranks, int8, blocks of 64 tokens" in text


def test_a_layout_that_does_not_fit_the_model_names_those_that_do(model: str) -> None:
    with pytest.raises(ConfigError, match=r"tp=3 does not fit 8 heads.*tp 1, 2, 4, 8; pp 1 to 6"):
        explained(model, "tp=3", "tp=1")


@pytest.mark.parametrize("text", ["tp", "tp=0", "tp=-1", "xp=2", "tp=2,tp=2", "tp=2;pp=2"])
def test_what_is_not_a_layout_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--decode is .*; allowed: sizes from 1"):
        read_layout(text, "--decode")


def test_sizes_that_are_not_named_are_one() -> None:
    assert read_layout("pp=2, tp=3", "--prefill") == ParallelLayout(tp=3, pp=2)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        explained(str(tmp_path), "tp=1", "tp=1")
