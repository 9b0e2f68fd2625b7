"""What a rank accepts from its leader: nothing that could make its engine or its memory fail.

Pure. Each function raises `InvalidArgument` naming the first thing that this rank cannot do.
"""

from __future__ import annotations

from collections.abc import Sequence

from eastwest.errors import InvalidArgument
from eastwest.messages import ModelInfo
from eastwest.ports import Buffer, KVMemory, StepRow


def check_step(rows: Sequence[StepRow], model: ModelInfo, kv: KVMemory, groups: int) -> None:
    """A batch. groups: data-parallel ones, of as many blocks each as this rank has."""
    for row in rows:
        if not row.tokens or max(row.tokens) >= model.vocab_size:
            raise InvalidArgument(f"a row has a token outside 0 to {model.vocab_size - 1}, or none")
        end = row.start + len(row.tokens)
        room = min(model.context_tokens, len(row.blocks) * kv.block_tokens)
        if row.start < 0 or end > room:
            raise InvalidArgument(
                f"a row has positions {row.start} to {end}; allowed: 0 to {room}, by its "
                f"{len(row.blocks)} blocks and the context"
            )
        first, last = min(row.blocks), max(row.blocks)
        if first // kv.num_blocks != last // kv.num_blocks or last >= groups * kv.num_blocks:
            raise InvalidArgument(
                f"a row has blocks {first} to {last}; allowed: of one of {groups} groups of "
                f"{kv.num_blocks}"
            )


def check_blocks(blocks: Sequence[int], kv: KVMemory) -> None:
    """The rank's own blocks."""
    if blocks and max(blocks) >= kv.num_blocks:
        raise InvalidArgument(f"block {max(blocks)} is named; allowed: 0 to {kv.num_blocks - 1}")


def check_payloads(payloads: Sequence[Buffer], blocks: Sequence[int], kv: KVMemory) -> None:
    """What is to be written to whole blocks, one payload each."""
    size = kv.spec.slice_bytes(kv.block_tokens, len(kv.shard.layers), len(kv.shard.heads))
    sizes = {len(payload) for payload in payloads}
    if len(payloads) != len(blocks) or sizes - {size}:
        raise InvalidArgument(
            f"{len(payloads)} payloads of {sorted(sizes)} bytes come for {len(blocks)} blocks; "
            f"allowed: one of {size} for each"
        )
