"""What the KV of one token is, and which part of it each rank of a parallel layout holds.

The canonical form of the KV of a run of tokens, on the wire and in the store, is the bytes of
``[layer][K, V][head][token][row]``, little-endian, restricted to a layer range and a head range.
A row is one key or value vector: its elements, and in a quantized dtype one float32 scale after
them, so that ``element * scale`` is the value. A block is such a run of `block_tokens` tokens.
Nothing in it depends on a layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.errors import ConfigError

DTYPE_BYTES: dict[str, int] = {
    "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3": 1, "int8": 1,
}  # fmt: skip
QUANTIZED = frozenset({"float8_e4m3", "int8"})
SCALE_BYTES = 4
# Larger models and replicas are taken for mistakes.
TOKEN_BYTES_MAX = 1 << 30
RANKS_MAX = 1 << 14


@dataclass(frozen=True, slots=True)
class KVSpec:
    """The KV of one token. Key and value dims may differ (MLA has one latent and no value)."""

    num_layers: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def key_bytes(self) -> int:
        """Bytes of one key row."""
        return self._row_bytes(self.key_dim)

    @property
    def value_bytes(self) -> int:
        """Bytes of one value row; 0 where there are no values."""
        return self._row_bytes(self.value_dim)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token over all layers and heads."""
        return self.slice_bytes(1, self.num_layers, self.num_kv_heads)

    def slice_bytes(self, tokens: int, layers: int, heads: int) -> int:
        """Bytes of a canonical run of `tokens` over `layers` layers and `heads` heads."""
        return tokens * layers * heads * (self.key_bytes + self.value_bytes)

    def _row_bytes(self, dim: int) -> int:
        scale = SCALE_BYTES if dim and self.dtype in QUANTIZED else 0
        return dim * self.itemsize + scale


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """How the ranks of one replica share a model: tensor, pipeline, expert and data parallel.

    Ranks count tensor-parallel fastest, then pipeline stages, then data-parallel groups. A
    sequence lives in one group; expert parallelism reuses the tensor and data ranks of a stage.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1

    @property
    def world_size(self) -> int:
        """Ranks of one replica."""
        return self.tp * self.pp * self.dp

    @property
    def group_size(self) -> int:
        """Ranks of one data-parallel group: those that hold the KV of a sequence together."""
        return self.tp * self.pp

    @property
    def leader(self) -> int:
        """The rank that plans steps and samples: the first one of group 0's last stage."""
        return (self.pp - 1) * self.tp

    @property
    def of_group(self) -> ParallelLayout:
        """How the KV of one sequence is spread over the ranks of its group."""
        return ParallelLayout(self.tp, self.pp)

    def tp_rank(self, rank: int) -> int:
        return rank % self.tp

    def stage(self, rank: int) -> int:
        return rank // self.tp % self.pp

    def group(self, rank: int) -> int:
        return rank // self.group_size

    def ranks_of_group(self, group: int) -> range:
        return range(group * self.group_size, (group + 1) * self.group_size)

    def __str__(self) -> str:
        parts = [f"{n}={v}" for n, v in self._named() if v > 1]
        return ",".join(parts) or "tp=1"

    def _named(self) -> tuple[tuple[str, int], ...]:
        return (("tp", self.tp), ("pp", self.pp), ("ep", self.ep), ("dp", self.dp))


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a `KVSpec` that one rank holds: global layer and KV-head index ranges."""

    layers: range
    heads: range


def shard_of(spec: KVSpec, layout: ParallelLayout, rank: int) -> Shard:
    """The shard of `rank` in `layout`; the same for all data-parallel groups.

    Layers split as evenly as possible, earlier stages taking the remainder. KV heads split
    evenly over tp; where tp exceeds them, each head is replicated on tp / heads ranks.
    """
    if not 0 <= rank < layout.world_size:
        raise ConfigError(f"rank {rank} is outside a layout of {layout.world_size} ranks")
    if layout.pp > spec.num_layers:
        raise ConfigError(f"pp={layout.pp} exceeds the model's {spec.num_layers} layers")
    tp_rank, stage = layout.tp_rank(rank), layout.stage(rank)
    base, extra = divmod(spec.num_layers, layout.pp)
    first = stage * base + min(stage, extra)
    layers = range(first, first + base + (stage < extra))
    big, small = max(layout.tp, spec.num_kv_heads), min(layout.tp, spec.num_kv_heads)
    if big % small:
        raise ConfigError(
            f"tp={layout.tp} neither divides nor is a multiple of {spec.num_kv_heads} KV heads"
        )
    if layout.tp <= spec.num_kv_heads:
        width = spec.num_kv_heads // layout.tp
        heads = range(tp_rank * width, (tp_rank + 1) * width)
    else:
        head = tp_rank // (layout.tp // spec.num_kv_heads)
        heads = range(head, head + 1)
    return Shard(layers, heads)
