"""A receiving rank with what it tells its leader, and frames for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import Transport
from eastwest.testing.kv_memory import ArrayKVMemory
from eastwest.types import SampledToken
from kv_transfer.frame_codec import Frame, Header, decode, encode
from kv_transfer.plan import Region, tokens_of
from kv_transfer.ranks import Arrived, Opening
from kv_transfer.receiver import Receiver
from kv_transfer.transfers import TransferStats

SPEC = KVSpec(num_layers=4, num_kv_heads=2, key_dim=4, value_dim=4, dtype="bfloat16")
BLOCK_TOKENS = 2
NUM_BLOCKS = 16
EPOCH = 7
RANK = 3
PROGRESS_NS = 100
TOKEN = SampledToken(11, -0.5)
TRANSFER = "t1"


def a_memory(*, seed: int | None = None, layout: ParallelLayout | None = None) -> ArrayKVMemory:
    """Zeros, or random content."""
    shard = shard_of(SPEC, layout or ParallelLayout(), 0)
    memory = ArrayKVMemory(SPEC, shard, NUM_BLOCKS, BLOCK_TOKENS)
    if seed is not None:
        memory.fill(seed)
    return memory


@dataclass
class RecordingEvents:
    """`ReceiverEvents` that remember what they were told."""

    progress: list[tuple[int, str]] = field(default_factory=list)
    arrived: list[tuple[int, str, Arrived]] = field(default_factory=list)

    def on_progress(self, rank: int, transfer_id: str) -> None:
        self.progress.append((rank, transfer_id))

    def on_arrived(self, rank: int, transfer_id: str, arrived: Arrived) -> None:
        self.arrived.append((rank, transfer_id, arrived))


@dataclass
class RecordingOwner:
    """A `TransferOwner` that remembers what it was told."""

    committed: list[tuple[str, SampledToken, bool, TransferStats]] = field(default_factory=list)
    aborted: list[tuple[str, str]] = field(default_factory=list)

    def check_commit(self, transfer_id: str, first_token: SampledToken, finished: bool) -> None:
        pass

    def on_committed(
        self, transfer_id: str, first_token: SampledToken, finished: bool, stats: TransferStats
    ) -> None:
        self.committed.append((transfer_id, first_token, finished, stats))

    def on_aborted(self, transfer_id: str, reason: str) -> None:
        self.aborted.append((transfer_id, reason))


class Receiving:
    """A receiver of zeroed memory, with one transfer open for blocks [1, 3) of a sequence.

    The sequence lies in blocks 9, 4, 5 and has 5 tokens: one is in the last block.
    """

    blocks = (9, 4, 5)
    region = Region(range(4), range(1, 3), range(2))
    num_tokens = 5

    def __init__(self, transport: Transport = Transport.GRPC) -> None:
        self.memory = a_memory()
        self.events = RecordingEvents()
        self.receiver = Receiver(
            self.memory, self.events, rank=RANK, epoch=EPOCH, progress_ns=PROGRESS_NS
        )
        self.receiver.open(an_opening(transport=transport))

    def read(self, blocks: list[int]) -> bytes:
        """All layers and heads of blocks."""
        return bytes(self.memory.read(blocks, self.region.layers, self.region.heads))

    def untouched(self) -> bool:
        """Nothing has been written anywhere."""
        return not self.memory.buffer.any()


def an_opening(
    transfer_id: str = TRANSFER,
    *,
    first_block: int = 1,
    transport: Transport = Transport.GRPC,
) -> Opening:
    blocks = Receiving.blocks
    return Opening(transfer_id, blocks, first_block, len(blocks), Receiving.num_tokens, transport)


def a_payload(region: Region, fill: int = 1) -> bytes:
    tokens = tokens_of(region.blocks, BLOCK_TOKENS, Receiving.num_tokens)
    return bytes([fill]) * SPEC.slice_bytes(len(tokens), len(region.layers), len(region.heads))


def a_frame(
    region: Region,
    *,
    transfer_id: str = TRANSFER,
    epoch: int = EPOCH,
    payload: bytes | None = None,
    fill: int = 1,
) -> Frame:
    """An intact frame; by default its payload is `fill` throughout."""
    header = Header(transfer_id, epoch, 0, region)
    return decode(encode(header, a_payload(region, fill) if payload is None else payload))
