"""From any layout into any other, through frames in any order: the KV arrives byte for byte.

1. Every destination rank holds, in its own blocks, what the source replica held.
2. Duplicates and order do not matter, and before the last frame no commit is possible.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.testing.kv_memory import ArrayKVMemory
from eastwest.types import SampledToken
from kv_transfer.frame_codec import Header, decode, encode
from kv_transfer.ledger import Ledger, Owner, OwnerKind
from kv_transfer.plan import frames, reshard
from kv_transfer.receiver import FrameResult, Receiver
from tests.property.test_kv_plan import pairs
from tests.unit.kv_transfer.builders import RecordingOwner

BLOCK_TOKENS = 2
NUM_BLOCKS = 8
SOURCE_BLOCKS = (5, 6, 7, 0, 2)
TARGET_BLOCKS = (1, 0, 4, 5, 7)
FIRST_BLOCK = 1
OWNER = Owner(OwnerKind.RESERVATION, "r1")


def a_rank(spec: KVSpec, layout: ParallelLayout, rank: int) -> ArrayKVMemory:
    return ArrayKVMemory(spec, shard_of(spec, layout, rank), NUM_BLOCKS, BLOCK_TOKENS)


def a_replica(spec: KVSpec, layout: ParallelLayout, whole: ArrayKVMemory) -> list[ArrayKVMemory]:
    """Ranks whose shards hold parts of `whole`."""
    blocks = range(NUM_BLOCKS)
    ranks = [a_rank(spec, layout, rank) for rank in range(layout.world_size)]
    for memory in ranks:
        layers, heads = memory.shard.layers, memory.shard.heads
        memory.write(blocks, layers, heads, whole.read(blocks, layers, heads))
    return ranks


@settings(deadline=None)
@given(pairs(), st.randoms(use_true_random=False), st.integers(64, 2000))
def test_kv_arrives_byte_for_byte(
    pair: tuple[KVSpec, ParallelLayout, ParallelLayout], rng: random.Random, frame_bytes: int
) -> None:
    spec, src, dst = pair
    whole = a_rank(spec, ParallelLayout(), 0)
    whole.fill(1)
    sources = a_replica(spec, src, whole)
    sent: dict[int, list[bytes]] = {rank: [] for rank in range(dst.world_size)}
    for part in reshard(src, dst, spec):
        for region in frames(
            part.layers,
            range(FIRST_BLOCK, len(SOURCE_BLOCKS)),
            part.heads,
            spec=spec,
            block_tokens=BLOCK_TOKENS,
            frame_bytes=frame_bytes,
        ):
            blocks = SOURCE_BLOCKS[region.blocks.start : region.blocks.stop]
            payload = sources[part.src_rank].read(blocks, region.layers, region.heads)
            sent[part.dst_rank].append(encode(Header("t", 1, part.src_rank, region), payload))
    for rank, messages in sent.items():
        memory = a_rank(spec, dst, rank)
        rng.shuffle(messages)
        receive(memory, messages, rng)
        layers, heads = memory.shard.layers, memory.shard.heads
        arrived = memory.read(TARGET_BLOCKS[FIRST_BLOCK:], layers, heads)
        assert arrived == whole.read(SOURCE_BLOCKS[FIRST_BLOCK:], layers, heads)


def receive(memory: ArrayKVMemory, messages: list[bytes], rng: random.Random) -> None:
    ledger, token = Ledger(), SampledToken(1)
    receiver = Receiver(memory, ledger, RecordingOwner(), epoch=1, lease_ns=100)
    ledger.open(OWNER, TARGET_BLOCKS, lease_until_ns=None)
    receiver.open(
        "t", OWNER, blocks=TARGET_BLOCKS, first_block=FIRST_BLOCK, num_blocks=len(TARGET_BLOCKS)
    )
    for i, message in enumerate(messages):
        assert receiver.commit("t", 1, token, finished=False, now_ns=0)
        assert receiver.accept(decode(message), 0) is FrameResult.ACCEPTED
        again = decode(rng.choice(messages[: i + 1]))
        assert receiver.accept(again, 0) is FrameResult.DUPLICATE
    assert not receiver.commit("t", 1, token, finished=False, now_ns=0)
