"""What a pair of layouts means for the KV that moves between them, in figures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from eastwest.layout import KVSpec, ParallelLayout, Shard, shard_of
from kv_transfer.convert import check_convertible
from kv_transfer.plan import Slice, reshard


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair. layout: of one data-parallel group."""

    layout: ParallelLayout
    kv: KVSpec
    block_tokens: int


@dataclass(frozen=True, slots=True)
class RankTraffic:
    """What one rank holds, and what it sends (or gets), in bytes of payload a token.

    fan: how many ranks of the other side it sends to (or gets from).
    """

    rank: int
    shard: Shard
    fan: int
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Link:
    """What one source rank sends to one destination rank."""

    src_rank: int
    dst_rank: int
    slices: tuple[Slice, ...]
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Who sends what to whom. Bytes are payload a token, in the destination's dtype.

    minimum_bytes_per_token: each byte of each destination rank once; the plan never takes more.
    block_bytes: of one destination block over all layers and heads.
    """

    src: Side
    dst: Side
    links: tuple[Link, ...]
    senders: tuple[RankTraffic, ...]
    receivers: tuple[RankTraffic, ...]
    bytes_per_token: int
    minimum_bytes_per_token: int
    block_bytes: int

    @property
    def converts(self) -> bool:
        """Whether senders change the dtype."""
        return self.src.kv.dtype != self.dst.kv.dtype


def explain(src: Side, dst: Side) -> Explanation:
    """Raises `ConfigError` or `Incompatible` where the two cannot be matched."""
    src = replace(src, layout=src.layout.of_group)
    dst = replace(dst, layout=dst.layout.of_group)
    check_convertible(src.kv, dst.kv, "at the source", "at the destination")
    by_pair: dict[tuple[int, int], list[Slice]] = {}
    for part in reshard(src.layout, dst.layout, dst.kv):
        by_pair.setdefault((part.src_rank, part.dst_rank), []).append(part)
    links = tuple(
        Link(*pair, tuple(slices), sum(_bytes(dst.kv, s.layers, s.heads) for s in slices))
        for pair, slices in sorted(by_pair.items())
    )
    receivers = tuple(
        _traffic(dst, rank, [link for link in links if link.dst_rank == rank])
        for rank in range(dst.layout.group_size)
    )
    return Explanation(
        src=src,
        dst=dst,
        links=links,
        senders=tuple(
            _traffic(src, rank, [link for link in links if link.src_rank == rank])
            for rank in range(src.layout.group_size)
        ),
        receivers=receivers,
        bytes_per_token=sum(link.bytes_per_token for link in links),
        minimum_bytes_per_token=sum(
            _bytes(dst.kv, r.shard.layers, r.shard.heads) for r in receivers
        ),
        block_bytes=dst.kv.bytes_per_token * dst.block_tokens,
    )


def _traffic(side: Side, rank: int, links: list[Link]) -> RankTraffic:
    shard = shard_of(side.kv, side.layout, rank)
    return RankTraffic(rank, shard, len(links), sum(link.bytes_per_token for link in links))


def _bytes(kv: KVSpec, layers: range, heads: range) -> int:
    return kv.slice_bytes(1, len(layers), len(heads))
