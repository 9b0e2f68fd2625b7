"""Which part of a model belongs to one rank of a layout, and which layouts a model allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout, shard_of
from engine.architecture import ArchitectureConfig
from engine.placement import place_experts


@dataclass(frozen=True, slots=True)
class RankSlice:
    """One rank's layers, and its rows of each kind of matrix.

    ffn: of dense networks. shared_ffn: of shared experts. vocab: of the output head, for ranks of
    the last stage. experts: whole or sliced, the ids of those kept here. expert_ffn: the rows of
    each that are kept here.
    """

    layers: range
    query_heads: range
    kv_heads: range
    ffn: range
    vocab: range
    shared_ffn: range = range(0)
    experts: tuple[int, ...] = ()
    expert_ffn: range = range(0)
    first_stage: bool = True
    last_stage: bool = True

    @staticmethod
    def of(
        config: ArchitectureConfig,
        layout: ParallelLayout,
        rank: int,
        expert_loads: Sequence[int] | None = None,
    ) -> RankSlice:
        """Raises `ConfigError` where the layout does not fit the model.

        expert_loads: how much each expert was used, the same on all ranks; experts are then so
        placed that ranks have about as much to do as each other.
        """
        check_layout(config, layout)
        shard = shard_of(config.kv_spec("float32"), layout, rank)
        tp_rank = layout.tp_rank(rank)
        per_rank = -(-config.vocab_size // layout.tp)
        vocab = range(tp_rank * per_rank, min((tp_rank + 1) * per_rank, config.vocab_size))
        experts: tuple[int, ...] = ()
        shared, expert_ffn = range(0), range(0)
        if config.moe is not None:
            shared = _share(config.moe.shared_ffn_size, layout.tp, tp_rank)
            share, slices = expert_share(layout, rank)
            experts = place_experts(config.moe.num_experts, layout.ep, expert_loads)[share]
            expert_ffn = _share(config.moe.ffn_size, slices, tp_rank % slices)
        return RankSlice(
            shard.layers,
            _share(config.num_heads, layout.tp, tp_rank),
            shard.heads,
            _share(config.ffn_size, layout.tp, tp_rank),
            vocab,
            shared,
            experts,
            expert_ffn,
            first_stage=layout.stage(rank) == 0,
            last_stage=layout.stage(rank) == layout.pp - 1,
        )


def expert_share(layout: ParallelLayout, rank: int) -> tuple[int, int]:
    """``(which of the `ep` shares of experts a rank keeps, into how many slices each is cut)``.

    Each data-parallel group keeps as many shares as the others; the tensor ranks that keep the
    same one slice it. Raises `ConfigError` for shares that ranks cannot be divided into.
    """
    if layout.ep == 1:
        return 0, layout.tp
    in_group, rest = divmod(layout.ep, layout.dp)
    if rest or layout.tp % in_group:
        raise ConfigError(
            f"layout {layout}: ep={layout.ep} does not fit tp={layout.tp} and dp={layout.dp}; "
            f"allowed: 1, or dp times a divisor of tp"
        )
    slices = layout.tp // in_group
    return layout.group(rank) * in_group + layout.tp_rank(rank) // slices, slices


def check_layout(config: ArchitectureConfig, layout: ParallelLayout) -> None:
    """Raise `ConfigError` unless `layout` fits the model, naming the layouts that do."""
    works = [tp for tp in range(1, config.num_heads + 1) if _divides(config, tp)]
    moe = config.moe
    if layout.tp not in works:
        wrong = f"tp={layout.tp} does not fit {', '.join(_divided(config))}"
    elif layout.pp > config.num_layers:
        wrong = f"pp={layout.pp} exceeds {config.num_layers} layers"
    elif layout.ep in _expert_shares(config, layout.tp, layout.dp):
        return
    elif moe is None:
        wrong = f"ep={layout.ep} is for mixtures of experts, which {config.name} is not"
    else:
        wrong = (
            f"ep={layout.ep} does not fit {moe.num_experts} experts of {moe.ffn_size} ffn rows "
            f"over tp={layout.tp} and dp={layout.dp}"
        )
    by_tp = [(tp, _expert_shares(config, tp, layout.dp)) for tp in works] if moe else [(0, [1])]
    eps = [" or ".join(map(str, eps)) + (f" at tp={tp}" if tp else "") for tp, eps in by_tp]
    raise ConfigError(
        f"layout {layout}: {wrong}; allowed for this model: tp {', '.join(map(str, works))}; "
        f"pp 1 to {config.num_layers}; ep {', '.join(eps)}"
        f"{f' (dp={layout.dp})' if moe else ''}; any dp"
    )


def _divided(config: ArchitectureConfig) -> list[str]:
    """What every tensor rank has a part of, in words."""
    heads = [f"{config.num_heads} heads"]
    if config.latent is None:
        heads.append(f"{config.num_kv_heads} KV heads")
    networks = [f"{size} {what} rows" for what, size in _networks(config).items()]
    experts = [] if config.moe is None else [f"experts of {config.moe.ffn_size} ffn rows"]
    return heads + networks + experts


def _divides(config: ArchitectureConfig, tp: int) -> bool:
    kv = config.num_kv_heads
    replicates = tp % kv == 0 if tp > kv else kv % tp == 0
    networks = all(size % tp == 0 for size in _networks(config).values())
    heads = replicates and config.num_heads % tp == 0
    return heads and networks and bool(_expert_shares(config, tp, 1))


def _networks(config: ArchitectureConfig) -> dict[str, int]:
    """Rows of the networks that are sliced over all tensor ranks."""
    moe = config.moe
    sizes = {"ffn": config.ffn_size if moe is None or not all(moe.sparse) else 0,
             "shared ffn": moe.shared_ffn_size if moe is not None else 0}  # fmt: skip
    return {name: size for name, size in sizes.items() if size}


def _expert_shares(config: ArchitectureConfig, tp: int, dp: int) -> list[int]:
    """Every `ep` that fits: 1, where each group keeps all experts, or a multiple of `dp`."""
    moe = config.moe
    if moe is None:
        return [1]
    fitting = [
        dp * in_group
        for in_group in range(1, tp + 1)
        if tp % in_group == 0
        and moe.num_experts % (dp * in_group) == 0
        and moe.ffn_size % (tp // in_group) == 0
    ]
    if 1 not in fitting and moe.ffn_size % tp == 0:
        fitting.insert(0, 1)
    return fitting


def _share(count: int, parts: int, index: int) -> range:
    size = count // parts
    return range(index * size, (index + 1) * size)
