"""The catalogue of models against published totals, and what follows from a shape."""

from __future__ import annotations

from dataclasses import fields

import pytest

from eastwest.errors import ModelError
from planner.hf_config import read_model
from planner.model_shape import ModelShape
from planner.models import find_model, model_names
from planner.precision import bytes_of
from tests.unit.planner.reference import reference, reference_yaml

# Parameters in all, those that a token is multiplied with (output head included), and KV elements
# of one token over all layers: by the formulas of the published config.json files (Hugging Face
# hub; OPT: arXiv 2205.01068, table 1), which meet the published totals (8.03B, 70.6B, 405B, 46.7B,
# 30.5B/3.3B, 235B/22B, 671B/37B, 1T/32B, 116.8B/5.1B, 20.9B/3.6B, 744B/40B).
PUBLISHED = {
    "llama-3.1-8b": (8_029_995_008, 7_504_658_432, 65_536),
    "llama-3-8b": (8_029_995_008, 7_504_658_432, 65_536),
    "llama-3.1-70b": (70_552_387_584, 69_501_714_432, 163_840),
    "llama-3-70b": (70_552_387_584, 69_501_714_432, 163_840),
    "llama-3.3-70b": (70_552_387_584, 69_501_714_432, 163_840),
    "llama-3.1-405b": (405_849_243_648, 403_747_897_344, 258_048),
    "llama-2-70b": (68_975_329_280, 68_713_185_280, 163_840),
    "llama-2-13b": (13_015_449_600, 12_851_609_600, 409_600),
    "opt-13b": (12_850_800_640, 12_840_304_640, 409_600),
    "opt-66b": (65_712_015_360, 65_693_122_560, 1_179_648),
    "opt-175b": (174_589_108_224, 174_563_917_824, 2_359_296),
    "mixtral-8x7b": (46_702_526_464, 12_748_587_008, 65_536),
    "qwen3-0.6b": (595_984_384, 595_984_384, 57_344),
    "qwen3-1.7b": (1_720_451_072, 1_720_451_072, 57_344),
    "qwen3-8b": (8_190_427_136, 7_568_097_280, 73_728),
    "qwen3-32b": (32_761_446_400, 31_983_534_080, 131_072),
    "qwen3-30b-a3b": (30_531_911_680, 3_041_656_832, 49_152),
    "qwen3-235b-a22b": (235_092_836_352, 21_567_635_456, 96_256),
    "deepseek-v3": (671_025_397_760, 36_624_596_992, 35_136),
    "deepseek-r1": (671_025_397_760, 36_624_596_992, 35_136),
    "deepseek-v3.2": (671_025_397_760, 36_624_596_992, 35_136),
    "kimi-k2": (1_026_407_202_816, 31_686_066_176, 35_136),
    "kimi-k2.5": (1_026_407_202_816, 31_686_066_176, 35_136),
    "gpt-oss-120b": (116_788_838_400, 5_131_100_160, 36_864),
    "gpt-oss-20b": (20_907_786_240, 3_607_142_400, 24_576),
    "glm-5.2": (743_179_026_432, 40_100_954_112, 44_928),
    "smollm2-135m": (134_479_872, 134_479_872, 11_520),
    "smollm2-135m-instruct": (134_479_872, 134_479_872, 11_520),
}


def test_every_entry_of_the_catalogue_has_its_published_size_here() -> None:
    assert set(PUBLISHED) == set(model_names())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_sizes_are_the_published_ones(name: str) -> None:
    total, active, kv = PUBLISHED[name]
    model = find_model(name)
    assert model.total_params == total
    assert model.active_params == active
    assert model.kv_elements_per_token == kv
    assert len(model.windows) == model.layers
    assert model.total_params == model.body_params + model.embedding_params
    assert model.active_body_params <= model.body_params


@pytest.mark.parametrize(
    ("name", "dtype", "kib"),
    [("llama-3.1-70b", "bf16", 320), ("llama-3.1-70b", "fp8", 160), ("llama-3.1-8b", "bf16", 128),
     ("deepseek-v3", "bf16", 68.625), ("deepseek-v3", "fp8", 34.3125), ("qwen3-32b", "fp8", 128)],
)  # fmt: skip
def test_kv_of_a_token_by_its_format(name: str, dtype: str, kib: float) -> None:
    assert find_model(name).kv_elements_per_token * bytes_of(dtype) == kib * 1024


def test_half_of_the_layers_of_gpt_oss_have_a_window() -> None:
    # openai/gpt-oss-120b config.json: layer_types alternate, sliding_window 128.
    model = find_model("gpt-oss-120b")
    assert model.window_groups() == ((None, 18), (128, 18))
    assert model.windows[:2] == (128, None)


def test_sparse_attention_has_an_index_in_all_or_in_a_quarter_of_the_layers() -> None:
    # DeepSeek-V3.2: each of 61 layers; GLM-5.2: the first three, and every fourth after them.
    for name, layers, heads in (("deepseek-v3.2", 61, 64), ("glm-5.2", 21, 32)):
        index = find_model(name).indexer
        assert index is not None
        assert (index.layers, index.heads, index.dim, index.top_k) == (layers, heads, 128, 2048)
    assert find_model("deepseek-v3").indexer is None


def test_a_latent_is_attended_to_as_it_lies_in_decode_and_unpacked_in_prompts() -> None:
    model = find_model("deepseek-v3")
    assert (model.kv_heads, model.kv_elements) == (1, 576)
    assert model.attended_dims == 128 * (512 + 64 + 512)
    assert model.prefill_attended_dims == 128 * (128 + 64 + 128)
    plain = find_model("llama-3.1-8b")
    assert plain.prefill_attended_dims == plain.attended_dims == 2 * 32 * 128


def test_names_are_found_whatever_their_case_and_owner() -> None:
    assert find_model(" DeepSeek-AI/DeepSeek-V3 ") == find_model("deepseek-v3")


@pytest.mark.parametrize(
    ("name", "near"),
    [("lama-3.1-70b", "llama-3.1-70b"), ("deepseek", "deepseek-v3"), ("gptoss-120b", "gpt-oss")],
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=rf"did you mean .*{near}.*allowed: .*config\.json"):
        find_model(name)


def test_a_name_of_any_length_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="neither in the catalogue nor a file"):
        find_model("x" * 5000)


def test_all_figures_are_those_of_the_reference() -> None:
    entries = reference_yaml("models.yaml")
    assert entries
    for name, entry in entries.items():
        model = find_model(name)
        assert model.total_params == entry["params_total_formula"], name
        assert model.active_params == entry["params_active_formula_incl_lm_head"], name
        assert model.active_body_params == entry["params_active_formula_body_only"], name
        assert model.attention_params == entry["attn_params_per_layer"], name
        assert model.kv_elements == entry["kv_elems_per_token_per_layer"], name
        assert model.kv_elements_per_token * 2 == entry["kv_bytes_per_token_bf16"], name
        assert model.kv_elements_per_token == entry["kv_bytes_per_token_fp8"], name
        assert model.context_tokens == entry["max_position"], name
        windowed = sum(1 for window in model.windows if window is not None)
        assert (windowed > 0) == ("sliding_window" in entry), name


def test_published_configs_read_as_their_entries_of_the_catalogue() -> None:
    """But for the name."""
    found = sorted(reference("model_configs").glob("*.json"))
    assert found
    for file in found:
        name = file.name.removesuffix("_config.json").split("--")[1].lower()
        for part in ("meta-", "-v0.1", "-instruct"):
            name = name.replace(part, "")
        published, ours = read_model(file), find_model(name)
        for field in fields(ModelShape):
            if field.name != "name":
                assert getattr(published, field.name) == getattr(ours, field.name), file.name
