"""A receiving rank with its ledger, and frames for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.testing.kv_memory import ArrayKVMemory
from eastwest.types import SampledToken
from kv_transfer.frame_codec import Frame, Header, decode, encode
from kv_transfer.ledger import Ledger, Owner, OwnerKind
from kv_transfer.plan import Region
from kv_transfer.receiver import Receiver, TransferStats

SPEC = KVSpec(num_layers=4, num_kv_heads=2, key_dim=4, value_dim=4, dtype="bfloat16")
BLOCK_TOKENS = 2
NUM_BLOCKS = 16
EPOCH = 7
LEASE_NS = 1_000
TOKEN = SampledToken(11, -0.5)
TRANSFER = "t1"
OWNER = Owner(OwnerKind.RESERVATION, "r1")


def a_memory(*, seed: int | None = None, layout: ParallelLayout | None = None) -> ArrayKVMemory:
    """Zeros, or random content."""
    shard = shard_of(SPEC, layout or ParallelLayout(), 0)
    memory = ArrayKVMemory(SPEC, shard, NUM_BLOCKS, BLOCK_TOKENS)
    if seed is not None:
        memory.fill(seed)
    return memory


@dataclass
class RecordingOwner:
    """A `TransferOwner` that remembers what it was told."""

    progress: list[str] = field(default_factory=list)
    committed: list[tuple[str, SampledToken, bool, TransferStats]] = field(default_factory=list)
    aborted: list[tuple[str, str]] = field(default_factory=list)

    def on_progress(self, transfer_id: str) -> None:
        self.progress.append(transfer_id)

    def on_committed(
        self, transfer_id: str, first_token: SampledToken, finished: bool, stats: TransferStats
    ) -> None:
        self.committed.append((transfer_id, first_token, finished, stats))

    def on_aborted(self, transfer_id: str, reason: str) -> None:
        self.aborted.append((transfer_id, reason))


class Receiving:
    """A receiver of zeroed memory, with one transfer open for blocks [1, 3) of a sequence.

    The sequence lies in physical blocks 9, 4, 5; the lease starts at time 0.
    """

    blocks = (9, 4, 5)
    region = Region(range(4), range(1, 3), range(2))

    def __init__(self) -> None:
        self.memory = a_memory()
        self.ledger = Ledger()
        self.owner = RecordingOwner()
        self.receiver = Receiver(
            self.memory, self.ledger, self.owner, epoch=EPOCH, lease_ns=LEASE_NS
        )
        self.ledger.open(OWNER, self.blocks, lease_until_ns=LEASE_NS)
        self.receiver.open(TRANSFER, OWNER, blocks=self.blocks, first_block=1, num_blocks=3)

    def untouched(self) -> bool:
        """Nothing has been written anywhere."""
        return not self.memory.keys.any() and not self.memory.values.any()


def a_payload(region: Region, fill: int = 1) -> bytes:
    tokens = len(region.blocks) * BLOCK_TOKENS
    return bytes([fill]) * SPEC.slice_bytes(tokens, len(region.layers), len(region.heads))


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
