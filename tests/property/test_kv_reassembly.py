"""From any layout into any other, through frames in any order: the KV arrives byte for byte.

1. Every destination rank holds, in its own blocks and dtype, what the source replica held.
2. Every byte of the tokens that are to come is written exactly once, and no other byte is.
3. Duplicates and order do not matter, and before the last frame nothing has arrived.
4. The same holds where senders write by themselves, piece by piece or all at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.blocks import blocks_for
from eastwest.layout import KVSpec, ParallelLayout, Shard, shard_of
from eastwest.messages import Ticket, Transport
from eastwest.paged_kv import Blocks
from eastwest.ports import Buffer
from eastwest.testing.kv_memory import ArrayKVMemory
from kv_transfer import digest
from kv_transfer.convert import convert
from kv_transfer.frame_codec import Header, checksum_seed, decode, encode, encode_in_place
from kv_transfer.outgoing import PushedKV
from kv_transfer.plan import Region, Slice, reshard, tokens_of
from kv_transfer.ranks import Opening
from kv_transfer.readiness import Readiness, Unsent
from kv_transfer.receiver import FrameResult, Receiver
from tests.property.test_kv_plan import pairs
from tests.unit.kv_transfer.builders import RecordingEvents

NUM_BLOCKS = 24
untimed = settings(deadline=None)  # machines may be busy


class CountingMemory(ArrayKVMemory):
    """Counts how often each byte is written by `write`."""

    def __init__(self, spec: KVSpec, shard: Shard, block_tokens: int) -> None:
        super().__init__(spec, shard, NUM_BLOCKS, block_tokens)
        self.times = ArrayKVMemory(spec, shard, NUM_BLOCKS, block_tokens)

    def write(
        self,
        blocks: Blocks,
        layers: range,
        heads: range,
        payload: Buffer,
        tokens: range | None = None,
    ) -> None:
        super().write(blocks, layers, heads, payload, tokens)
        before = np.frombuffer(self.times.read(blocks, layers, heads, tokens), np.uint8)
        self.times.write(blocks, layers, heads, (before + 1).data, tokens)


@dataclass(frozen=True)
class Case:
    """A transfer of a sequence that lies in blocks of two sizes."""

    src_kv: KVSpec
    dst_kv: KVSpec
    src: ParallelLayout
    dst: ParallelLayout
    num_tokens: int
    src_block: int
    dst_block: int
    first_block: int
    frame_bytes: int
    rng: random.Random

    def blocks(self, size: int) -> tuple[int, ...]:
        count = blocks_for(self.num_tokens, size)
        return tuple(random.Random(size).sample(range(NUM_BLOCKS), count))

    @property
    def ticket(self) -> Ticket:
        return Ticket(
            transfer_id="t",
            worker_id="d0",
            epoch=1,
            address="",
            endpoints=(),
            layout=self.dst,
            kv=self.dst_kv,
            fingerprint="",
            block_tokens=self.dst_block,
            first_block=self.first_block,
            num_blocks=blocks_for(self.num_tokens, self.dst_block),
            num_tokens=self.num_tokens,
            lease_s=1.0,
        )

    def whole(self) -> ArrayKVMemory:
        """All of the sequence in one block of a memory: finite values."""
        memory = ArrayKVMemory(
            self.src_kv, shard_of(self.src_kv, ParallelLayout(), 0), 1, self.num_tokens
        )
        plain = replace(self.src_kv, dtype="float32")
        count = plain.bytes_per_token * self.num_tokens // 4
        values = np.random.default_rng(1).standard_normal(count, np.float32)
        shape = (plain.num_layers, plain.num_kv_heads, self.num_tokens)
        run = convert(values.tobytes(), plain, self.src_kv, shape)
        memory.write([0], memory.shard.layers, memory.shard.heads, run)
        return memory

    def sources(self, whole: ArrayKVMemory) -> list[PushedKV]:
        """What each source rank can send."""
        ranks = []
        for rank in range(self.src.world_size):
            shard = shard_of(self.src_kv, self.src, rank)
            memory = ArrayKVMemory(self.src_kv, shard, NUM_BLOCKS, self.src_block)
            run = whole.read([0], shard.layers, shard.heads)
            blocks = self.blocks(self.src_block)
            memory.write(blocks, shard.layers, shard.heads, run, range(self.num_tokens))
            ranks.append(PushedKV(memory, blocks, self.ticket))
        return ranks

    def targets(self) -> list[CountingMemory]:
        """The memory of each destination rank, empty."""
        shards = [shard_of(self.dst_kv, self.dst, r) for r in range(self.dst.world_size)]
        return [CountingMemory(self.dst_kv, shard, self.dst_block) for shard in shards]

    def filled(self, whole: ArrayKVMemory, shard: Shard) -> CountingMemory:
        """What a destination rank shall hold: each byte that is to come written once."""
        memory = CountingMemory(self.dst_kv, shard, self.dst_block)
        layers, heads = shard.layers, shard.heads
        tokens = range(self.first_block * self.dst_block, self.num_tokens)
        if tokens:
            run = whole.read([0], layers, heads, tokens)
            shape = (len(layers), len(heads), len(tokens))
            run = convert(run, self.src_kv, self.dst_kv, shape)
            memory.write(self.blocks(self.dst_block), layers, heads, run, tokens)
        return memory

    def frames(self) -> Iterator[tuple[Slice, Region]]:
        """Of the whole plan."""
        blocks = range(self.first_block, self.ticket.num_blocks)
        for part in reshard(self.src, self.dst, self.dst_kv):
            unsent = Unsent([part], self.ticket, self.frame_bytes)
            for region in unsent.cut(part.layers, blocks, part.heads):
                yield part, region


@st.composite
def cases(draw: st.DrawFn) -> Case:
    spec, src, dst = draw(pairs())
    num_tokens = draw(st.integers(1, NUM_BLOCKS))
    dst_block = draw(st.integers(1, 7).filter(lambda n: blocks_for(num_tokens, n) <= NUM_BLOCKS))
    dtypes = st.sampled_from(("bfloat16", "float32", "int8"))
    src_kv, dst_kv = (replace(spec, dtype=draw(dtypes)) for _ in range(2))
    return Case(
        src_kv=src_kv,
        dst_kv=dst_kv,
        src=src,
        dst=dst,
        num_tokens=num_tokens,
        src_block=draw(st.integers(1, 7)),
        dst_block=dst_block,
        first_block=draw(st.integers(0, blocks_for(num_tokens, dst_block))),
        frame_bytes=draw(st.integers(dst_kv.slice_bytes(dst_block, 1, 1), 2000)),
        rng=draw(st.randoms(use_true_random=False)),
    )


def a_receiver(
    case: Case, memory: CountingMemory, transport: Transport
) -> tuple[Receiver, RecordingEvents]:
    events = RecordingEvents()
    receiver = Receiver(memory, events, rank=0, epoch=1)
    ticket = case.ticket
    receiver.open(
        Opening(
            "t",
            case.blocks(case.dst_block),
            ticket.first_block,
            ticket.num_blocks,
            ticket.num_tokens,
            transport,
        )
    )
    return receiver, events


@untimed
@given(cases())
def test_kv_arrives_byte_for_byte_and_every_byte_once(case: Case) -> None:
    whole = case.whole()
    sources, targets = case.sources(whole), case.targets()
    sent: list[list[bytes]] = [[] for _ in targets]
    for part, region in case.frames():
        payload = sources[part.src_rank].read(region)
        assert memoryview(payload).nbytes <= case.frame_bytes
        sent[part.dst_rank].append(encode(Header("t", 1, part.src_rank, region), payload))
    for memory, messages in zip(targets, sent, strict=True):
        receiver, events = a_receiver(case, memory, Transport.GRPC)
        case.rng.shuffle(messages)
        for i, message in enumerate(messages):
            assert not events.arrived
            assert receiver.accept(decode(message), 0) is FrameResult.ACCEPTED
            again = decode(case.rng.choice(messages[: i + 1]))
            assert receiver.accept(again, 0) is FrameResult.DUPLICATE
        assert len(events.arrived) == 1
        assert asyncio.run(receiver.missing("t")) == []
        expected = case.filled(whole, memory.shard)
        assert (memory.buffer == expected.buffer).all()
        assert (memory.times.buffer == expected.times.buffer).all()


@untimed
@given(cases(), st.sampled_from((0, 1 << 20)))
def test_senders_that_write_by_themselves_leave_the_same(case: Case, stretch: int) -> None:
    whole = case.whole()
    sources, targets = case.sources(whole), case.targets()
    receivers = [a_receiver(case, memory, Transport.SHARED_MEMORY) for memory in targets]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "STRETCH_BYTES_MIN", stretch)
        for part, region in case.frames():
            header = Header("t", 1, part.src_rank, region, in_place=True)
            blocks = case.blocks(case.dst_block)[region.blocks.start : region.blocks.stop]
            checksum = sources[part.src_rank].copy_to(
                targets[part.dst_rank], blocks, region, checksum_seed(header)
            )
            frame = decode(encode_in_place(header, checksum))
            receiver, _ = receivers[part.dst_rank]
            assert receiver.accept(frame, 0) is FrameResult.ACCEPTED
    for memory, (_, events) in zip(targets, receivers, strict=True):
        assert len(events.arrived) == 1
        assert (memory.buffer == case.filled(whole, memory.shard).buffer).all()


@untimed
@given(cases(), st.data())
def test_what_leaves_is_ready_and_leaves_once(case: Case, data: st.DataObject) -> None:
    ticket = case.ticket
    rank = data.draw(st.integers(0, case.src.world_size - 1))
    layers = shard_of(case.src_kv, case.src, rank).layers
    for dst_rank in range(case.dst.world_size):
        parts = [
            part
            for part in reshard(case.src, case.dst, case.dst_kv)
            if (part.src_rank, part.dst_rank) == (rank, dst_rank)
        ]
        ready, unsent = Readiness(layers), Unsent(parts, ticket, case.frame_bytes)
        taken: list[tuple[int, int, int]] = []
        for _ in range(data.draw(st.integers(0, 6))):
            start = data.draw(st.integers(layers.start, layers.stop))
            stop = data.draw(st.integers(start, layers.stop))
            ready.raise_to(range(start, stop), data.draw(st.integers(0, case.num_tokens + 3)))
            taken += take_all(unsent, ready, ticket)
        ready.raise_to(layers, case.num_tokens)
        taken += take_all(unsent, ready, ticket)
        assert unsent.done
        wanted = [
            (layer, head, block)
            for part in parts
            for layer in part.layers
            for head in part.heads
            for block in range(ticket.first_block, ticket.num_blocks)
        ]
        assert sorted(taken) == sorted(wanted)


def take_all(unsent: Unsent, ready: Readiness, ticket: Ticket) -> list[tuple[int, int, int]]:
    """The cells of everything that may leave, each of which must be ready."""
    cells = []
    while regions := unsent.take(ready):
        for region in regions:
            end = tokens_of(region.blocks, ticket.block_tokens, ticket.num_tokens).stop
            assert all(ready[layer] >= end for layer in region.layers)
            cells += [
                (layer, head, block)
                for layer in region.layers
                for head in region.heads
                for block in region.blocks
            ]
    return cells
