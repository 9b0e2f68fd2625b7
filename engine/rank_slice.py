"""Which part of a model belongs to one rank of a layout, and which layouts a model allows."""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.errors import ConfigError
from eastwest.layout import ParallelLayout, shard_of
from engine.architecture import ArchitectureConfig


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
    def of(config: ArchitectureConfig, layout: ParallelLayout, rank: int) -> RankSlice:
        """Raises `ConfigError` where the layout does not fit the model."""
        check_layout(config, layout)
        shard = shard_of(config.kv_spec("float32"), layout, rank)
        tp_rank = layout.tp_rank(rank)
        per_rank = -(-config.vocab_size // layout.tp)
        vocab = range(tp_rank * per_rank, min((tp_rank + 1) * per_rank, config.vocab_size))
        return RankSlice(
            shard.layers,
            _share(config.num_heads, layout.tp, tp_rank),
            shard.heads,
            _share(config.ffn_size, layout.tp, tp_rank),
            vocab,
            first_stage=layout.stage(rank) == 0,
            last_stage=layout.stage(rank) == layout.pp - 1,
        )


def check_layout(config: ArchitectureConfig, layout: ParallelLayout) -> None:
    """Raise `ConfigError` unless `layout` fits the model, naming the layouts that do."""
    works = [tp for tp in range(1, config.num_heads + 1) if _divides(config, tp)]
    if layout.tp not in works:
        wrong = (
            f"tp={layout.tp} does not fit {config.num_heads} heads, {config.num_kv_heads} KV heads "
            f"and {config.ffn_size} ffn rows"
        )
    elif layout.pp > config.num_layers:
        wrong = f"pp={layout.pp} exceeds {config.num_layers} layers"
    elif layout.ep > 1:
        wrong = f"ep={layout.ep} is for mixtures of experts, which {config.name} is not"
    else:
        return
    raise ConfigError(
        f"{wrong}; allowed for this model: tp {', '.join(map(str, works))}; "
        f"pp 1 to {config.num_layers}; ep 1; any dp"
    )


def _divides(config: ArchitectureConfig, tp: int) -> bool:
    kv = config.num_kv_heads
    replicates = tp % kv == 0 if tp > kv else kv % tp == 0
    return replicates and config.num_heads % tp == 0 and config.ffn_size % tp == 0


def _share(count: int, parts: int, index: int) -> range:
    size = count // parts
    return range(index * size, (index + 1) * size)
