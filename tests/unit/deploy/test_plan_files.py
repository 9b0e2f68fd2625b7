"""A plan as files: JSON that programs can rely on, and a configuration that can be served."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deploy.plan_files import SCHEMA, plan_config, plan_json, write_config, write_json
from eastwest.config import PoolConfig, load_config
from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout
from engine.architecture import ArchitectureConfig
from engine.rank_slice import check_layout
from planner.ask import ask
from planner.hf_config import shape_of
from planner.memory import RESERVE, weights_per_rank
from planner.planning import Plan, plan
from planner.split import Mode
from planner.workload import steady

_ARCHITECTURE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
    "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
    "max_position_embeddings": 40960, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    "hidden_act": "silu", "tie_word_embeddings": False, "norm_topk_prob": True,
}  # fmt: skip


@cache
def a_plan(**changed: Any) -> Plan:
    usual: dict[str, Any] = {
        "model": "qwen3-30b-a3b", "hardware": "h100-sxm", "devices": 8, "ttft_s": 1.0,
        "tpot_s": 0.03, "workload": steady(4000, 400),
    }  # fmt: skip
    return plan(ask(**{**usual, **changed}))


@cache
def in_mode(mode: Mode, **changed: Any) -> Plan:
    """A plan whose choice is the best split of a mode."""
    answer = a_plan(**changed)
    split = answer.by_mode[mode]
    assert split is not None
    return replace(answer, best=split)


def numbers(tree: object) -> list[float]:
    """Every number of a JSON tree."""
    if isinstance(tree, dict):
        return [n for value in tree.values() for n in numbers(value)]
    if isinstance(tree, list):
        return [n for value in tree for n in numbers(value)]
    return [tree] if isinstance(tree, int | float) else []


@pytest.mark.parametrize(
    "changed",
    [{}, {"price_per_hour": 0}, {"devices": 1, "hardware": "h200", "availability": 0.9},
     {"model": "gpt-oss-120b", "hardware": "gb200", "devices": 4}],
    ids=str,
)  # fmt: skip
def test_json_says_everything_in_finite_numbers(tmp_path: Path, changed: dict[str, Any]) -> None:
    answer, path = a_plan(**changed), tmp_path / "plan.json"
    write_json(answer, path)

    def refuse(name: str) -> float:
        raise AssertionError(name)

    tree = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert tree == plan_json(answer)
    assert tree["schema"] == SCHEMA == 1
    assert tree["predicted"] is True
    assert all(math.isfinite(n) for n in numbers(tree))
    assert set(tree["by_mode"]) == set(tree["frontiers"]) == {mode.value for mode in Mode}
    assert tree["advice"] == answer.advice
    best = tree["best"]
    assert best == tree["by_mode"][best["mode"]]
    assert sum(pool["devices"] for pool in best["pools"]) == best["devices"]
    assert best["tokens_per_s_per_user"] * best["tpot_s"] == pytest.approx(1)
    priced = answer.question.price_per_hour > 0
    assert (best["dollars_per_million_tokens"] is None) != priced
    shares = [c["share"] for c in tree["question"]["workload"]["classes"]]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("mode", Mode)
def test_the_configuration_loads_and_has_the_pools_of_the_split(tmp_path: Path, mode: Mode) -> None:
    answer = in_mode(mode, workload=steady(4000, 400, spread=0.3))
    path = tmp_path / "serve.yaml"
    write_config(answer, path)
    config = load_config(path, environ={})
    assert config == plan_config(answer)
    sections: dict[str, PoolConfig] = {
        "prefill": config.prefill, "decode": config.decode, "aggregated": config.aggregated,
    }  # fmt: skip
    pools = {pool.role: pool for pool in answer.best.pools}
    architecture = ArchitectureConfig.from_hf(_ARCHITECTURE)
    for role, section in sections.items():
        if role not in pools:
            assert section.replicas == 0
            continue
        pool, layout = pools[role], section.layout.layout()
        assert (section.replicas, layout) == (pool.replicas, pool.layout)
        assert section.step_tokens == pool.chunk_tokens
        assert section.running_max >= pool.batch
        check_layout(architecture, layout)


def test_the_engine_here_runs_what_was_planned_for() -> None:
    assert shape_of("same", _ARCHITECTURE).total_params == a_plan().question.model.total_params


def fits_in_memory(answer: Plan, section: PoolConfig, kv_bytes: float) -> float:
    """Share of a device's memory that weights and the whole paged KV take on a rank."""
    q, layout = answer.question, section.layout.layout()
    heads = max(1, q.model.kv_heads // layout.tp)
    per_token = q.model.kv_elements // q.model.kv_heads * heads * kv_bytes
    layers = -(-q.model.layers // layout.pp)
    used = weights_per_rank(q.model, layout, q.precision) + section.kv_tokens * layers * per_token
    return used / q.device.memory.bytes


def test_paged_kv_fills_what_weights_leave() -> None:
    answer = in_mode(Mode.DISAGGREGATED)
    for section in (plan_config(answer).prefill, plan_config(answer).decode):
        assert section.kv_tokens % 16 == 0
        assert fits_in_memory(answer, section, 2) == pytest.approx(1 - RESERVE, rel=1e-3)


def test_kv_of_8_bits_is_asked_of_the_engine() -> None:
    answer = a_plan(kv="fp8")
    pool = answer.best.pools[-1]
    section = getattr(plan_config(answer), pool.role)
    assert section.kv_dtype == "float8_e4m3"
    assert fits_in_memory(answer, section, 1) == pytest.approx(1 - RESERVE, rel=1e-3)
    assert getattr(plan_config(a_plan()), a_plan().best.pools[-1].role).kv_dtype == "auto"


def a_windowed_config(tmp_path: Path) -> Path:
    """Mistral 7B: every layer sees 4,096 positions."""
    fields = {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": 4096,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return tmp_path


def test_the_engine_keeps_what_is_outside_of_windows(tmp_path: Path) -> None:
    """So that each token of a sequence takes room in every layer."""
    answer = a_plan(model=str(a_windowed_config(tmp_path)), devices=2)
    pool = answer.best.pools[-1]
    section = getattr(plan_config(answer), pool.role)
    assert fits_in_memory(answer, section, 2) == pytest.approx(1 - RESERVE, rel=1e-3)


def test_a_model_is_served_from_where_it_was_read(tmp_path: Path) -> None:
    folder = a_windowed_config(tmp_path)
    assert plan_config(a_plan(model=str(folder), devices=2)).model.source == str(folder)
    assert plan_config(a_plan(model="Qwen/Qwen3-30B-A3B")).model.source == "Qwen/Qwen3-30B-A3B"


@pytest.mark.parametrize(("weights", "quantization"), [("bf16", "none"), ("int8w", "int8")])
def test_weights_are_served_as_planned(weights: str, quantization: str) -> None:
    assert plan_config(a_plan(weights=weights)).model.quantization == quantization


def test_the_head_of_the_file_says_why(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    write_config(a_plan(), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("# ") for line in lines[:8] if line.startswith("# ")]
    assert "predicted, not measured" in comments[0]
    assert a_plan().advice.split(":")[0] in comments[1]
    assert all(len(line) <= 100 for line in lines[:4])


@pytest.mark.parametrize("write", [write_json, write_config])
def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, write: Any) -> None:
    for path in (tmp_path, tmp_path / "absent" / "plan"):
        with pytest.raises(ConfigError, match=r"cannot be written"):
            write(a_plan(), path)


def test_layouts_are_written_as_numbers() -> None:
    tree = plan_json(in_mode(Mode.AGGREGATED))
    layout = ParallelLayout(**tree["best"]["pools"][0]["layout"])
    assert layout == in_mode(Mode.AGGREGATED).best.pools[0].layout
