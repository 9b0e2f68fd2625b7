"""GGUF to Hugging Face, compared with the models and tokenizers that the files were made from."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from eastwest.errors import ModelError
from engine.checkpoint import open_checkpoint
from engine.gguf_convert import convert_gguf
from tests.unit.engine.tiny_gguf import (
    CORPUS,
    Q,
    TinyGGUF,
    in_rope_order,
    llama_cpp_tensors,
    tiny_model,
    tokens_and_merges,
)

TOKENS, MERGES = tokens_and_merges()
ARCHITECTURES = ["llama", "qwen2", "qwen3"]
TEXTS = [
    CORPUS,
    "def f(x):\n\treturn {'a': [x, 10**9]}\r\n\r\n",
    "I'm, you'RE, they'll;   wide   12  345 gaps\n\n\n 7\t8",
    "naïve café ½² Ⅻ ١٢٣ １２ 東京2024年 Größe",
    "🙂👩‍👩‍👧🇩🇪 \u200b\u00a0 a\u0301",
    "<|start|>user<|endoftext|> <think>  two spaces<think",
    "",
]  # fmt: skip

PIECES = st.sampled_from([*"  \n\t\r12٣½é東🙂T'.", "'s", "'LL", "the", " fox", "<think>"])


def convert(source: TinyGGUF, directory: Path) -> Path:
    return convert_gguf(source.write(directory / "tiny.gguf"), directory / "converted")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_float32_file_becomes_the_very_same_model(architecture: str, tmp_path: Path) -> None:
    target = convert(TinyGGUF(architecture), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    tokens = torch.tensor([[5, 77, 300, 2, 41, 8]])
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded(tokens).logits, tiny_model(architecture)(tokens).logits, rtol=0, atol=0
        )
    assert loaded.generation_config.eos_token_id == 0


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_1, Q.Q4_0, Q.BF16, Q.F16])
def test_every_matrix_is_the_dequantised_one_in_a_type_that_holds_it(
    kind: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(convert(TinyGGUF("qwen3", matrix_type=kind), tmp_path))
    stored = torch.float16 if kind == Q.F16 else torch.bfloat16
    assert checkpoint.config["torch_dtype"] == str(stored).removeprefix("torch.")
    source = llama_cpp_tensors("qwen3")
    pairs = {
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
    }
    for key, name in pairs.items():
        expected = gguf.dequantize(gguf.quantize(source[key], kind), kind)
        assert torch.equal(checkpoint.tensor(name), torch.from_numpy(expected.copy()).to(stored))
    norm = checkpoint.tensor("model.layers.0.self_attn.q_norm.weight")
    assert torch.equal(norm, torch.from_numpy(source["blk.0.attn_q_norm.weight"]))


def test_quantised_q_and_k_of_llama_are_put_back_in_order(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(convert(TinyGGUF(matrix_type=Q.Q8_0), tmp_path))
    for projection, key in (("q_proj", "attn_q"), ("k_proj", "attn_k")):
        values = llama_cpp_tensors("llama")[f"blk.1.{key}.weight"]
        quantised = gguf.dequantize(gguf.quantize(values, Q.Q8_0), Q.Q8_0)
        ours = checkpoint.tensor(f"model.layers.1.self_attn.{projection}.weight").float().numpy()
        rounded = torch.from_numpy(quantised.copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(in_rope_order(ours, head_dim=16), rounded)


def test_a_second_conversion_is_the_first(tmp_path: Path) -> None:
    target = convert(TinyGGUF(), tmp_path)
    before = (target / "model.safetensors").stat().st_mtime_ns
    convert_gguf(tmp_path / "absent.gguf", target)
    assert (target / "model.safetensors").stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["converted", "tiny.gguf"]


def test_equal_files_have_equal_fingerprints_in_different_places(tmp_path: Path) -> None:
    prints = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        prints.add(open_checkpoint(convert(TinyGGUF(), tmp_path / name)).fingerprint)
    assert len(prints) == 1


# The tokenizer.


def by_transformers(source: TinyGGUF, directory: Path) -> Tokenizer:
    """What transformers makes of the same file."""
    source.write(directory / "oracle.gguf")
    loaded: Any = AutoTokenizer.from_pretrained(directory, gguf_file="oracle.gguf")
    backend: Tokenizer = loaded.backend_tokenizer
    return backend


@functools.cache
def tokenizers_of(pre: str, directory: Path) -> tuple[Tokenizer, Tokenizer]:
    """Ours, and the oracle."""
    source = TinyGGUF(pre=pre)
    ours = Tokenizer.from_file(str(convert(source, directory) / "tokenizer.json"))
    oracle = by_transformers(source, directory)
    if pre == "smollm":
        # transformers knows this one as GPT-2's; llama.cpp, where the name is from, cuts off
        # each digit first, as the tokenizer of the original model does.
        oracle.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return ours, oracle


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "qwen2", "llama-bpe"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Tokenizer]:
    return tokenizers_of(request.param, tmp_path_factory.mktemp("tokenizers"))


def test_texts_get_the_tokens_of_the_oracle(pair: tuple[Tokenizer, Tokenizer]) -> None:
    ours, oracle = pair
    for text in TEXTS:
        if ours.normalizer is not None:
            text = ours.normalizer.normalize_str(text)  # llama.cpp leaves that to its callers
        assert (
            ours.encode(text, add_special_tokens=False).ids
            == oracle.encode(text, add_special_tokens=False).ids
        )
    assert ours.get_vocab() == oracle.get_vocab()


@settings(deadline=None)
@given(text=st.lists(st.one_of(PIECES, st.characters(codec="utf-8")), max_size=30).map("".join))
def test_any_text_gets_the_tokens_of_the_oracle(
    pair: tuple[Tokenizer, Tokenizer], text: str
) -> None:
    ours, oracle = pair
    tokens = ours.encode(text, add_special_tokens=False).ids
    assert tokens == oracle.encode(text, add_special_tokens=False).ids
    assert ours.decode(tokens, skip_special_tokens=False) == oracle.decode(
        tokens, skip_special_tokens=False
    )


def test_a_user_defined_token_is_found_whole_even_with_spaces(tmp_path: Path) -> None:
    kinds = [4 if t == "Ċ" else 1 for t in TOKENS]
    spelled = ["two  spaces" if t == "Ċ" else t for t in TOKENS]
    plain = [m for m in MERGES if "Ċ" not in m]
    names = ("tokens", "token_type", "merges")
    metadata = dict(
        zip((f"tokenizer.ggml.{n}" for n in names), (spelled, kinds, plain), strict=True)
    )
    target = convert(TinyGGUF(metadata=metadata), tmp_path)
    ours = Tokenizer.from_file(str(target / "tokenizer.json"))
    tokens = ours.encode("a two  spaces b").ids
    assert TOKENS.index("Ċ") in tokens
    assert ours.decode(tokens) == "a two  spaces b"


def test_the_directory_is_what_transformers_expects(tmp_path: Path) -> None:
    source = TinyGGUF(
        pre="smollm",
        metadata={
            "tokenizer.ggml.eot_token_id": 1,
            "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
        },
    )
    target = convert(source, tmp_path)
    loaded: Any = AutoTokenizer.from_pretrained(target)
    ours = Tokenizer.from_file(str(target / "tokenizer.json"))
    for text in TEXTS:
        assert loaded.encode(text) == ours.encode(text).ids
    assert (loaded.bos_token, loaded.eos_token) == ("<|start|>", "<|endoftext|>")
    chat = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|start|>hi"
    assert json.loads((target / "generation_config.json").read_text())["eos_token_id"] == [0, 1]


@pytest.mark.parametrize(
    ("metadata", "pre", "framed"),
    [
        ({}, "gpt-2", []),
        ({}, "llama-bpe", [1]),
        ({"tokenizer.ggml.add_bos_token": False}, "llama-bpe", []),
        ({"tokenizer.ggml.add_bos_token": True}, "gpt-2", [1]),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True},
            "gpt-2",
            [1, 0],
        ),
    ],
)
def test_texts_are_framed_as_the_file_asks(
    metadata: dict[str, Any], pre: str, framed: list[int], tmp_path: Path
) -> None:
    target = convert(TinyGGUF(pre=pre, metadata=metadata), tmp_path)
    ours = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert ours.encode("").ids == framed


# What is refused.


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (TinyGGUF(without=("blk.1.attn_k.weight",)), "has no blk.1.attn_k.weight"),
        (TinyGGUF(without=("token_embd.weight",)), "has no matrix token_embd.weight"),
        (TinyGGUF(tensors={"rope_freqs.weight": np.ones(8, np.float32)}), "rope_freqs.weight"),
        (TinyGGUF(metadata={"llama.rope.scaling.type": "yarn"}), "rope.scaling.type = yarn"),
        (TinyGGUF(metadata={"llama.expert_count": 8}), "expert_count = 8"),
        (TinyGGUF(metadata={"llama.rope.dimension_count": 8}), "8 .rotary."),
        (TinyGGUF(metadata={"llama.attention.value_length": 32}), "32 .value."),
        (TinyGGUF(metadata={"llama.attention.head_count": 2}), "32 .key.|rows"),
        (TinyGGUF(metadata={"llama.attention.head_count": 0}), "0 heads"),
        (TinyGGUF(metadata={"llama.attention.head_count": [4, 2]}), "is a list; allowed: int"),
        (TinyGGUF(metadata={"llama.attention.head_count": "4"}), "is a str; allowed: int"),
        (TinyGGUF(metadata={"llama.block_count": 2**31}), "2147483648 layers"),
        (TinyGGUF(without=("llama.block_count",)), "has no llama.block_count"),
        (TinyGGUF(metadata={"tokenizer.ggml.model": "llama"}), "of type 'llama'; allowed"),
        (TinyGGUF(pre="tekken"), "'tekken'; allowed in a GGUF: gpt-2"),
        (TinyGGUF(metadata={"tokenizer.ggml.tokens": TOKENS[:-1]}), "token"),
        (TinyGGUF(metadata={"tokenizer.ggml.tokens": TOKENS[:-1] + TOKENS[:1]}), "twice"),
        (TinyGGUF(metadata={"tokenizer.ggml.tokens": [1, 2]}), "other elements than str"),
        (TinyGGUF(metadata={"tokenizer.ggml.token_type": [1, 2]}), "2 token types"),
        (TinyGGUF(metadata={"tokenizer.ggml.merges": [*MERGES, "zz zz"]}), "'zz zz'"),
        (TinyGGUF(metadata={"tokenizer.ggml.eos_token_id": 10**6}), "below"),
        (
            TinyGGUF(tensors={"output_norm.weight": np.full(64, np.nan, np.float32)}),
            "not finite",
        ),
    ],
)  # fmt: skip
def test_what_a_conversion_would_get_wrong_is_refused(
    source: TinyGGUF, reason: str, tmp_path: Path
) -> None:
    path = source.write(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match=reason) as caught:
        convert_gguf(path, tmp_path / "converted")
    assert "\n" not in caught.value.message
    assert [p.name for p in tmp_path.iterdir() if "lock" not in p.name] == ["tiny.gguf"]


def test_an_unknown_architecture_is_refused(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(sound.replace(b"llama", b"mamba", 1))
    with pytest.raises(ModelError, match="'mamba'; allowed in a GGUF: llama, qwen2, qwen3"):
        convert_gguf(path, tmp_path / "converted")


def test_a_count_beyond_the_file_is_refused_at_once(tmp_path: Path) -> None:
    key, array_of_uint32 = b"some.key", struct.pack("<II", 9, 4)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    path = tmp_path / "endless.gguf"
    path.write_bytes(header + array_of_uint32 + struct.pack("<Q", 2**60))
    with pytest.raises(ModelError, match="truncated"):
        convert_gguf(path, tmp_path / "converted")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return TinyGGUF().write(tmp_path_factory.mktemp("sound") / "tiny.gguf").read_bytes()


@pytest.mark.parametrize("content", [b"", b"GGU", b"GGUF", b"PK\x03\x04" + bytes(64), bytes(64)])
def test_a_file_that_is_no_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"not a GGUF file|truncated"):
        convert_gguf(path, tmp_path / "converted")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path / "converted")


@settings(deadline=None, max_examples=40)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(
    sound: bytes, tmp_path_factory: pytest.TempPathFactory, fraction: float
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    (directory / "cut.gguf").write_bytes(sound[: int(fraction * len(sound))])
    with pytest.raises(ModelError, match=r"not a GGUF file|truncated"):
        convert_gguf(directory / "cut.gguf", directory / "converted")


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_file_with_wrong_bytes_is_converted_or_refused(
    sound: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    broken = bytearray(sound)
    header = sound.index(b"output_norm.weight") + 64
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(4, header))] = data.draw(st.integers(0, 255))
    directory = tmp_path_factory.mktemp("broken")
    (directory / "broken.gguf").write_bytes(broken)
    try:
        target = convert_gguf(directory / "broken.gguf", directory / "converted")
    except ModelError:
        return
    assert open_checkpoint(target).names()
