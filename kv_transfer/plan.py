"""Who sends which KV to whom when two layouts meet, and how a slice is cut into frames.

All layer and head indices are global, block indices count within the sequence. Ranks are those
of one data-parallel group on each side, since a sequence lives in one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eastwest.errors import ConfigError
from eastwest.layout import KVSpec, ParallelLayout, Shard, shard_of


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers and heads that one source rank sends to one destination rank, for every block."""

    src_rank: int
    dst_rank: int
    layers: range
    heads: range


@dataclass(frozen=True, slots=True)
class Region:
    """A box of KV: layers x blocks x heads. What a frame carries, or what a transfer lacks."""

    layers: range
    blocks: range
    heads: range


def reshard(src: ParallelLayout, dst: ParallelLayout, spec: KVSpec) -> list[Slice]:
    """The slices that fill every destination rank from the source ranks.

    Each (destination rank, layer, head) is in exactly one slice. Source ranks that hold the same
    shard divide its layers among themselves, beginning with another one for each destination.
    Raises `ConfigError` where a layout does not fit the spec.
    """
    replicas: dict[Shard, list[int]] = {}
    for rank in range(src.tp * src.pp):
        replicas.setdefault(shard_of(spec, src, rank), []).append(rank)
    slices = []
    for dst_rank in range(dst.tp * dst.pp):
        wanted = shard_of(spec, dst, dst_rank)
        for held, ranks in replicas.items():
            layers = overlap(held.layers, wanted.layers)
            heads = overlap(held.heads, wanted.heads)
            if not heads:
                continue
            for i, part in enumerate(_divide(layers, len(ranks))):
                src_rank = ranks[(i + dst_rank) % len(ranks)]
                slices.append(Slice(src_rank, dst_rank, part, heads))
    return slices


def frames(
    layers: range,
    blocks: range,
    heads: range,
    *,
    spec: KVSpec,
    block_tokens: int,
    frame_bytes: int,
) -> Iterator[Region]:
    """Cut a box into regions of at most `frame_bytes` of payload, each cell in exactly one.

    Layers are cut first, so that a frame holds long runs of tokens; then blocks; then heads.
    Raises `ConfigError` where one block of one layer and head exceeds `frame_bytes`.
    """
    cell = spec.slice_bytes(block_tokens, 1, 1)
    if cell > frame_bytes:
        raise ConfigError(
            f"frame_bytes is {frame_bytes}; allowed: at least {cell}, one block of one head"
        )
    if not blocks or not heads:
        return
    head_step = min(len(heads), frame_bytes // cell)
    block_step = min(len(blocks), frame_bytes // (cell * head_step))
    layer_step = max(1, frame_bytes // (cell * len(heads) * len(blocks)))
    for layer_part in _cut(layers, layer_step):
        for block_part in _cut(blocks, block_step):
            for head_part in _cut(heads, head_step):
                yield Region(layer_part, block_part, head_part)


def tokens_of(blocks: range, block_tokens: int, num_tokens: int) -> range:
    """Positions of the tokens in blocks of a sequence of `num_tokens`: its last block may have
    room for more."""
    return range(blocks.start * block_tokens, min(blocks.stop * block_tokens, num_tokens))


def overlap(a: range, b: range) -> range:
    """The indices in both ranges."""
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))


def meets(a: Region, b: Region) -> bool:
    """Whether two boxes have a cell in common."""
    return all(
        overlap(*ranges)
        for ranges in ((a.layers, b.layers), (a.blocks, b.blocks), (a.heads, b.heads))
    )


def holds(whole: Region, part: Region) -> bool:
    """Whether `part` has a cell, and none outside `whole`."""
    return all(
        inner and outer.start <= inner.start and inner.stop <= outer.stop
        for outer, inner in (
            (whole.layers, part.layers),
            (whole.blocks, part.blocks),
            (whole.heads, part.heads),
        )
    )


def _divide(whole: range, parts: int) -> Iterator[range]:
    """`whole` in up to `parts` non-empty pieces that differ by at most one in length."""
    base, extra = divmod(len(whole), parts)
    start = whole.start
    for i in range(min(parts, len(whole))):
        stop = start + base + (i < extra)
        yield range(start, stop)
        start = stop


def _cut(whole: range, step: int) -> Iterator[range]:
    for start in range(whole.start, whole.stop, step):
        yield range(start, min(start + step, whole.stop))
