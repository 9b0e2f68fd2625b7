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
        """Raises `ConfigError` where the layout does not divide the model."""
        shard = shard_of(config.kv_spec("float32"), layout, rank)
        for name, count in (("heads", config.num_heads), ("ffn rows", config.ffn_size)):
            if count % layout.tp:
                raise ConfigError(f"tp={layout.tp} does not divide the model's {count} {name}")
        tp_rank = layout.tp_rank(rank)
        return RankSlice(
            shard.layers,
            _share(config.num_heads, layout.tp, tp_rank),
            shard.heads,
            _share(config.ffn_size, layout.tp, tp_rank),
            range(config.vocab_size),
            first_stage=layout.stage(rank) == 0,
            last_stage=layout.stage(rank) == layout.pp - 1,
        )


def _share(count: int, parts: int, index: int) -> range:
    size = count // parts
    return range(index * size, (index + 1) * size)
