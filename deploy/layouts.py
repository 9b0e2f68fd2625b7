"""`eastwest layouts`: what a pair of layouts means for the KV that moves between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from eastwest.config import Config, ModelConfig, PoolConfig
from eastwest.errors import ConfigError, ModelError
from eastwest.layout import KVSpec, ParallelLayout, Shard
from kv_transfer.explain import Explanation, RankTraffic, Side, explain

_SIZES = ("tp", "pp", "ep", "dp")


def explain_pair(
    config: Config, model: str | None, prefill: str | None, decode: str | None
) -> RenderableType:
    """The plan between a prefill and a decode replica; what is None is as configured.

    Raises `ConfigError` where a layout does not fit the model, naming those that do.
    """
    from engine.architecture import ArchitectureConfig
    from engine.catalog import resolve_model
    from engine.rank_slice import check_layout

    chosen = config.model.model_copy(update={"source": model or config.model.source})
    facts = read_config(resolve_model(chosen))
    architecture = ArchitectureConfig.from_hf(facts)
    sides = []
    for pool, text, flag in (
        (config.prefill, prefill, "--prefill"),
        (config.decode, decode, "--decode"),
    ):
        layout = pool.layout.layout() if text is None else read_layout(text, flag)
        check_layout(architecture, layout)
        kv = architecture.kv_spec(_kv_dtype(pool, chosen, facts))
        sides.append(Side(layout, kv, pool.block_tokens or config.kv.block_tokens))
    return explanation(f"{chosen.source} ({architecture.name})", explain(*sides))


def _kv_dtype(pool: PoolConfig, model: ModelConfig, facts: Mapping[str, object]) -> str:
    """As configured; where that is left open, what the checkpoint was published in."""
    for dtype in (pool.kv_dtype, model.dtype):
        if dtype != "auto":
            return dtype
    published = facts.get("dtype", facts.get("torch_dtype"))
    return str(published) if published in ("float32", "float16") else "bfloat16"


def read_layout(text: str, flag: str) -> ParallelLayout:
    """``tp=4,pp=2`` as a layout; sizes that are not named are 1."""
    sizes: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        if name not in _SIZES or name in sizes or not value.isdecimal() or int(value) < 1:
            raise ConfigError(
                f"{flag} is {text!r}; allowed: sizes from 1, each at most once, such as tp=4,pp=2 "
                f"({', '.join(_SIZES)})"
            )
        sizes[name] = int(value)
    return ParallelLayout(**sizes)


def read_config(directory: Path) -> dict[str, object]:
    """The object in a model directory's config.json; weights are not needed."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}; allowed: a JSON object")
    return config


def explanation(model: str, plan: Explanation) -> RenderableType:
    """Who holds what, who sends what to whom, and what that comes to."""
    kv = plan.dst.kv
    exact = plan.bytes_per_token == plan.minimum_bytes_per_token
    once = "each byte of each decode rank once" if exact else "MORE than each byte once"
    copies = plan.bytes_per_token / kv.bytes_per_token
    replicated = f", {copies:g} copies of the token's {kv.bytes_per_token:,}" if copies > 1 else ""
    lines = [
        f"{model}: KV of {kv.num_layers} layers x {_heads_words(kv)}",
        f"prefill {plan.src.layout}: {plan.src.layout.group_size} ranks, {plan.src.kv.dtype}, "
        f"blocks of {plan.src.block_tokens} tokens",
        f"decode  {plan.dst.layout}: {plan.dst.layout.group_size} ranks, {kv.dtype}, "
        f"blocks of {plan.dst.block_tokens} tokens ({plan.block_bytes:,} bytes)",
    ]
    if plan.converts:
        lines.append(f"prefill converts {plan.src.kv.dtype} to {kv.dtype} before it sends")
    return Group(
        "\n".join(lines),
        "",
        _ranks("prefill rank", "sends to", plan.senders),
        "",
        _links(plan),
        "",
        _ranks("decode rank", "gets from", plan.receivers),
        "",
        f"in all {plan.bytes_per_token:,} bytes a token: {once}{replicated}",
    )


def _heads_words(kv: KVSpec) -> str:
    if not kv.value_dim:
        return f"one latent of {kv.key_dim}"
    heads = "1 head" if kv.num_kv_heads == 1 else f"{kv.num_kv_heads} heads"
    return f"{heads} of {kv.key_dim} + {kv.value_dim}"


def _ranks(title: str, verb: str, ranks: Sequence[RankTraffic]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(title, justify="right")
    table.add_column("holds layers")
    table.add_column("KV heads")
    table.add_column(verb, justify="right")
    table.add_column("bytes a token", justify="right")
    for r in ranks:
        ranks_words = "1 rank" if r.fan == 1 else f"{r.fan} ranks"
        holds = _shard(r.shard)
        table.add_row(str(r.rank), *holds, ranks_words, f"{r.bytes_per_token:,}")
    return table


def _links(plan: Explanation) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("from", justify="right")
    table.add_column("to", justify="right")
    table.add_column("layers and KV heads")
    table.add_column("bytes a token", justify="right")
    for link in plan.links:
        parts = [_shard(Shard(s.layers, s.heads)) for s in link.slices]
        what = "; ".join(f"{layers} x {heads}" for layers, heads in parts)
        table.add_row(str(link.src_rank), str(link.dst_rank), what, f"{link.bytes_per_token:,}")
    return table


def _shard(shard: Shard) -> tuple[str, str]:
    return _span(shard.layers), _span(shard.heads)


def _span(part: range) -> str:
    return str(part.start) if len(part) == 1 else f"{part.start}-{part.stop - 1}"
