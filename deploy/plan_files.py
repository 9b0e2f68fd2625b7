"""A plan as files: JSON for programs, and a configuration that `eastwest serve` takes."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from deploy.settings import explained_yaml
from deploy.writing import writing
from eastwest.config import Config, LayoutConfig, ModelConfig, PoolConfig
from eastwest.layout import ParallelLayout
from planner.memory import RESERVE, kv_per_token, weights_per_rank
from planner.planning import Change, Plan, Question
from planner.split import Pool, Split

# Raised when a field changes its meaning or goes; new fields do not count.
SCHEMA = 1
# Of the engine's formats of KV, those that differ from the model's own.
_KV_DTYPES: dict[str, Literal["float8_e4m3", "int8"]] = {"fp8": "float8_e4m3", "int8": "int8"}


def plan_json(plan: Plan) -> dict[str, Any]:
    """The whole plan: times in seconds, rates per second, sizes in bytes."""
    return {
        "schema": SCHEMA,
        "predicted": True,
        "question": _question(plan.question),
        "advice": plan.advice,
        "best": _split(plan, plan.best),
        "by_mode": {
            mode.value: None if split is None else _split(plan, split)
            for mode, split in plan.by_mode.items()
        },
        "frontiers": {
            mode.value: [_split(plan, split) for split in splits]
            for mode, splits in plan.frontiers.items()
        },
        "changes": [_change(plan, change) for change in plan.changes],
        "needs": {
            "link": plan.needs.link_kind,
            "link_used_bytes_per_s_per_device": plan.needs.link_used,
            "link_has_bytes_per_s_per_device": plan.needs.link_has,
            "kv_bytes_per_token": plan.needs.kv_bytes_per_token,
            "store_worth_bytes_per_s_per_replica": plan.needs.store_worth,
        },
        "spares": {"devices": plan.spares, "up_probability": plan.up},
    }


def write_json(plan: Plan, path: Path) -> None:
    """Raises `ConfigError` where the file cannot be written."""
    text = json.dumps(plan_json(plan), indent=2) + "\n"
    with writing(path):
        path.write_text(text, encoding="utf-8")


def write_config(plan: Plan, path: Path) -> None:
    """Raises `ConfigError` where the file cannot be written."""
    q = plan.question
    head = [
        f"{q.model.name} on {plan.best.devices} x {q.device.name}; predicted, not measured.",
        *textwrap.wrap(plan.advice, 96),
    ]
    comment = "".join(f"# {line}\n" for line in head)
    text = comment + explained_yaml(plan_config(plan))
    with writing(path):
        path.write_text(text, encoding="utf-8")


def plan_config(plan: Plan) -> Config:
    """The chosen split as a configuration. Pools that it has none of have no replicas."""
    pools = {pool.role: _pool_config(plan.question, pool) for pool in plan.best.pools}
    none = PoolConfig(replicas=0)
    base = Config()
    return base.model_copy(
        update={
            "model": _model_config(plan.question),
            "prefill": pools.get("prefill", none),
            "decode": pools.get("decode", none),
            "aggregated": pools.get("aggregated", none),
        }
    )


def _model_config(question: Question) -> ModelConfig:
    precision = question.precision
    return ModelConfig(
        source=question.source or question.model.name,
        dtype="float32" if precision.activations == "fp32" else "auto",
        quantization="int8" if precision.ffn == "int8w" else "none",
    )


def _pool_config(question: Question, pool: Pool) -> PoolConfig:
    precision, layout = question.precision, pool.layout
    # The engine keeps what a window no longer sees.
    model = replace(question.model, windows=(None,) * question.model.layers)
    free = question.device.memory.bytes * (1 - RESERVE)
    free -= weights_per_rank(model, layout, precision)
    tokens = int(free / kv_per_token(model, layout, precision))
    at_once = max(1, math.ceil((pool.batch + 3 * math.sqrt(pool.batch)) / layout.dp) * layout.dp)
    return PoolConfig(
        replicas=pool.replicas,
        layout=LayoutConfig(tp=layout.tp, pp=layout.pp, ep=layout.ep, dp=layout.dp),
        kv_dtype=_KV_DTYPES.get(precision.kv, "auto"),
        kv_tokens=max(16, tokens // 16 * 16),
        step_tokens=pool.chunk_tokens,
        running_max=at_once,
        waiting_max=max(1024, 2 * at_once),
    )


def _question(q: Question) -> dict[str, Any]:
    w = q.workload
    return {
        "model": q.model.name,
        "hardware": q.device.name,
        "devices": q.devices,
        "stack": q.stack.name,
        "precision": {
            "attention": q.precision.attention, "ffn": q.precision.ffn,
            "experts": q.precision.experts, "head": q.precision.head, "kv": q.precision.kv,
        },
        "workload": {
            "source": w.source, "isl": w.isl, "osl": w.osl, "fresh": w.fresh,
            "arrival_cv": w.arrival_cv,
            "classes": [
                {"isl": c.isl, "osl": c.osl, "cached": c.cached, "share": c.share}
                for c in w.classes
            ],
        },
        "targets": {
            "ttft_s": q.targets.ttft_s, "tpot_s": q.targets.tpot_s,
            "percentile": q.targets.percentile,
        },
        "price_per_hour": q.price_per_hour,
        "availability": q.availability,
        "skew": q.skew,
    }  # fmt: skip


def _split(plan: Plan, split: Split) -> dict[str, Any]:
    priced = plan.question.price_per_hour > 0
    return {
        "mode": split.mode.value,
        "name": split.name,
        "pools": [_pool(pool) for pool in split.pools],
        "devices": split.devices,
        "requests_per_s": split.rate,
        "tokens_per_s": split.tokens_per_s,
        "tokens_per_s_per_device": split.tokens_per_s_per_device,
        "tokens_per_s_per_user": split.tokens_per_s_per_user,
        "ttft_s": split.ttft_s,
        "tpot_s": split.tpot_s,
        "tpot_mean_s": split.tpot_mean_s,
        "bound": split.bound,
        "prompt_share_of_steps": split.prompt_share,
        "local_tokens": split.local_tokens,
        "link_bytes_per_s": split.link_bytes_per_s,
        "dollars_per_million_tokens": plan.dollars_per_million_tokens(split) if priced else None,
    }


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "role": pool.role,
        "layout": _layout(pool.layout),
        "replicas": pool.replicas,
        "devices": pool.devices,
        "chunk_tokens": pool.chunk_tokens,
        "batch": pool.batch,
        "load": pool.load,
    }


def _layout(layout: ParallelLayout) -> dict[str, int]:
    return {"tp": layout.tp, "pp": layout.pp, "ep": layout.ep, "dp": layout.dp}


def _change(plan: Plan, change: Change) -> dict[str, Any]:
    best = None if change.best is None else _split(plan, change.best)
    return {"what": change.what, "best": best, "kept_requests_per_s": change.kept}
