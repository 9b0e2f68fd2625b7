"""What a checkpoint must hold for a rank to load it, and what it may hold beside that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eastwest.errors import ModelError
from engine.architecture import ArchitectureConfig
from engine.checkpoint import open_checkpoint
from engine.weight_check import check_tensors
from tests.checkpoints import ARCHITECTURES, in_fp8, tiny_checkpoint

Tensors = dict[str, torch.Tensor]
EVERY_LAYER = range(3)
ATTENTION = "model.layers.1.self_attn"
EXPERT = "model.layers.2.mlp.experts.3.up_proj.weight"


def check(directory: Path, change: Callable[[Tensors], object], layers: range) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    checkpoint = open_checkpoint(directory)
    check_tensors(checkpoint, ArchitectureConfig.from_hf(checkpoint.config), layers)


def adding(*names: str, size: int = 4) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.zeros(size) for name in names})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bias_that_the_config_does_not_know_is_refused(architecture: str, tmp_path: Path) -> None:
    directory = tiny_checkpoint(architecture, tmp_path)
    name = f"{ATTENTION}.o_proj.bias"
    with pytest.raises(ModelError, match=f"{name}, which a model with this config.json has no use"):
        check(directory, adding(name), EVERY_LAYER)
    check(directory, lambda _: None, range(1))


@pytest.mark.parametrize(
    ("added", "named"),
    [
        (("lm_head.bias",), "has lm_head.bias, which"),
        (("model.norm.bias",), "has model.norm.bias, which"),
        (
            tuple(f"{ATTENTION}.{name}.bias" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
            r"k_proj\.bias, \S+o_proj\.bias, \S+q_proj\.bias and 1 more, which",
        ),
        ((f"{ATTENTION}.q_norm.weight",), r"q_norm\.weight, which"),
        (("model.layers.0.mlp.gate_proj.weight_scale_inv",), "weight_scale_inv, which"),
    ],
)
def test_what_nothing_reads_is_named(added: tuple[str, ...], named: str, tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama", tmp_path)
    with pytest.raises(ModelError, match=named) as refused:
        check(directory, adding(*added), EVERY_LAYER)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("architecture", "added"),
    [
        ("llama", (f"{ATTENTION}.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")),
        ("qwen2", ("lm_head.weight",)),  # tied
        (
            "deepseek_v3",  # which predicts a further token
            ("model.layers.3.eh_proj.weight", "model.layers.3.shared_head.head.weight"),
        ),
        ("mistral", ("vision_tower.patch_conv.weight",)),
    ],
)
def test_what_changes_no_token_is_accepted(
    architecture: str, added: tuple[str, ...], tmp_path: Path
) -> None:
    check(tiny_checkpoint(architecture, tmp_path), adding(*added), EVERY_LAYER)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(f"{EXPERT}_scale_inv"), f"has no tensor '{EXPERT}_scale_inv'"),
        (
            lambda t: t.update({f"{EXPERT}_scale_inv": torch.ones(1, 2)}),
            r"up_proj.weight_scale_inv has shape \[1, 2\]; config.json makes it \[2, 2\]",
        ),
        (
            lambda t: t.update({f"{EXPERT}_scale_inv": torch.ones(2, 2, dtype=torch.int32)}),
            "weight_scale_inv is of dtype I32; allowed .*: F32, F16, BF16, F8_E8M0",
        ),
        (
            lambda t: t.update({EXPERT: t[EXPERT].float()}),
            "weight_scale_inv, which a model with this config.json has no use for",
        ),
        (
            lambda t: t.update({EXPERT: t[EXPERT].to(torch.float8_e5m2)}),
            "up_proj.weight is of dtype F8_E5M2; allowed with this config.json: .*BF16, F8_E4M3$",
        ),
        (
            lambda t: t.update(
                {"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}
            ),
            "model.norm.weight is of dtype F8_E4M3; allowed .*F16, BF16$",
        ),
        (
            lambda t: t.update(
                {"model.embed_tokens.weight": t["model.embed_tokens.weight"].to(torch.int8)}
            ),
            "embed_tokens.weight is of dtype I8; allowed .*: F64, F32, F16, BF16$",
        ),
    ],
)  # fmt: skip
def test_scales_go_with_the_weights_that_need_them(
    change: Callable[[Tensors], object], named: str, tmp_path: Path
) -> None:
    plain = tiny_checkpoint("deepseek_v3", tmp_path / "plain")
    published = in_fp8(plain, tmp_path / "fp8", (24, 40))
    check(published, lambda _: None, EVERY_LAYER)
    with pytest.raises(ModelError, match=named):
        check(published, change, EVERY_LAYER)


def test_eight_bits_without_a_quantization_config_are_refused(tmp_path: Path) -> None:
    directory, name = tiny_checkpoint("llama", tmp_path), "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ModelError, match=f"{name} is of dtype F8_E4M3; allowed"):
        check(directory, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}), EVERY_LAYER)


def test_shapes_are_those_of_the_config(tmp_path: Path) -> None:
    directory, name = tiny_checkpoint("llama", tmp_path), "model.layers.2.mlp.up_proj.weight"
    with pytest.raises(ModelError, match=r"up_proj.weight has shape \[4\]; config.json makes it"):
        check(directory, adding(name), EVERY_LAYER)
    with pytest.raises(ModelError, match=f"has no tensor '{name}'"):
        check(directory, lambda t: t.pop(name), EVERY_LAYER)
