"""Model files of any kind: each is read, or `ModelError` says what is wrong with it.

(Weights: `tests/unit/engine/test_checkpoint.py` and `test_gguf_convert.py`.)
"""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.clock import SystemClock
from eastwest.errors import EastWestError, InvalidArgument, ModelError
from engine.architecture import ArchitectureConfig
from router.chat_template import load_chat_template
from router.text import load_tokenizer
from tests.byte_tokenizer import CHAT_TEMPLATE, write_tokenizer

KINDS = ("Llama", "Qwen3Moe", "Mixtral", "DeepseekV3")
ARCHITECTURES = tuple(f"{kind}ForCausalLM" for kind in KINDS)
CONFIGS: list[dict[str, Any]] = [
    {
        "architectures": [name],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
        "num_local_experts": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "sliding_window": 64,
        "layer_types": ["full_attention", "sliding_attention"],
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]},
        "head_dim": 16,
        "tie_word_embeddings": False,
    }
    for name in (
        "LlamaForCausalLM",
        "Qwen3MoeForCausalLM",
        "MixtralForCausalLM",
        "DeepseekV3ForCausalLM",
    )
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 70)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([1 << 70, 1e308, "yarn", "llama3", "full_attention", "{{ x", "{% for"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
untimed = settings(deadline=None, derandomize=True)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    config = dict(draw(st.sampled_from(CONFIGS)))
    for name in draw(st.lists(st.sampled_from(sorted(config)), max_size=3)):
        if draw(st.booleans()):
            config[name] = draw(VALUES)
        else:
            config.pop(name, None)
    return config


@settings(untimed, max_examples=400)
@given(configs())
def test_any_config_is_an_architecture_or_refused(config: dict[str, Any]) -> None:
    with suppress(ModelError):
        ArchitectureConfig.from_hf(config)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory, CHAT_TEMPLATE)
    return directory


@settings(untimed, max_examples=60)
@given(st.data())
def test_any_tokenizer_is_read_or_refused(model_dir: Path, data: st.DataObject) -> None:
    good = bytearray((model_dir / "tokenizer.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "tokenizer.json").write_bytes(good)
        with suppress(ModelError, InvalidArgument):
            tokenizer = load_tokenizer(Path(directory))
            tokenizer.decode(tokenizer.encode("hello"))


SPECIAL = st.sampled_from(["bos_token", "eos_token", "chat_template", "unk_token", "name"])


@settings(untimed, max_examples=200)
@given(st.dictionaries(SPECIAL, VALUES | st.text(max_size=30), max_size=4) | VALUES)
def test_any_chat_template_is_read_or_refused(config: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        with suppress(EastWestError):
            template = load_chat_template(Path(directory), SystemClock())
            template.render([{"role": "user", "content": "hi"}])
