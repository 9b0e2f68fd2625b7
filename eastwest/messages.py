"""What the router and a worker say to each other, as plain values.

A `Command` goes down and an `Event` comes up one long-lived stream per router and worker.
`eastwest.wire` turns them into protobuf; the simulator passes them as they are.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from eastwest.blocks import BlockHash
from eastwest.errors import EastWestError, ErrorCode, Phase
from eastwest.layout import KVSpec, ParallelLayout
from eastwest.types import FinishReason, Role, SampledToken, SamplingParams, Tier

PROTOCOL_VERSION = 3


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a replica serves. Equal `fingerprint` means that KV means the same.

    fingerprint: hash of architecture, weights, dtype. eos_ids: tokens that end a text. kv: how
    this replica keeps KV, whose dtype may differ from that of others with the same fingerprint.
    """

    name: str
    fingerprint: str
    architecture: str
    dtype: str
    context_tokens: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    kv: KVSpec


class Transport(enum.StrEnum):
    """How the payload of frames gets from one rank to another; best first."""

    SHARED_MEMORY = "shared_memory"
    NIXL = "nixl"
    GRPC = "grpc"


@dataclass(frozen=True, slots=True)
class RankEndpoint:
    """Where one rank of a replica takes KV.

    rank: within its data-parallel group. address: ``host:port`` of its KvTransfer service.
    memory: how a transport that writes by itself finds the rank's paged KV; "" for not at all.
    """

    rank: int
    address: str
    memory: str = ""


@dataclass(frozen=True, slots=True)
class KvSource:
    """What a decode worker has to know of the worker that will fill a reservation.

    layout: of one data-parallel group. host: equal for processes that can share memory.
    transports: what the worker can send by.
    """

    worker_id: str
    epoch: int
    fingerprint: str
    layout: ParallelLayout
    kv: KVSpec
    block_tokens: int
    host: str
    transports: tuple[Transport, ...]
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself when a router connects.

    epoch: this incarnation; larger than that of any former one with the same worker_id.
    address: ``host:port`` of its gRPC server. num_blocks: of all data-parallel groups together.
    step_tokens: most prompt tokens in one step. host, transports: see `KvSource`.
    """

    worker_id: str
    epoch: int
    role: Role
    address: str
    model: ModelInfo
    layout: ParallelLayout
    block_tokens: int
    num_blocks: int
    running_max: int
    step_tokens: int
    host: str = ""
    transports: tuple[Transport, ...] = (Transport.GRPC,)
    protocol_version: int = PROTOCOL_VERSION

    @property
    def sequence_blocks_max(self) -> int:
        """Most blocks that one sequence can have: those of one data-parallel group."""
        return self.num_blocks // self.layout.dp

    def source(self) -> KvSource:
        """This worker as the one that fills a reservation."""
        return KvSource(
            self.worker_id,
            self.epoch,
            self.model.fingerprint,
            self.layout.of_group,
            self.model.kv,
            self.block_tokens,
            self.host,
            self.transports,
            self.protocol_version,
        )


@dataclass(frozen=True, slots=True)
class Ticket:
    """A decode worker's promise of room, given to the prefill worker that fills it.

    Blocks ``[first_block, num_blocks)`` of the prompt (in blocks of `block_tokens`, the
    receiver's) must be pushed, in the dtype of `kv`; those before are already there. The last one
    ends with token `num_tokens`. endpoints: the ranks of the group that holds the blocks, and
    layout theirs. address: ``host:port`` that takes the commit. epoch: frames for another one are
    refused. transport: by which payloads come. blocks: where the receiving ranks keep blocks
    ``[first_block, num_blocks)``, for transports that write by themselves; else empty.
    """

    transfer_id: str
    worker_id: str
    epoch: int
    address: str
    endpoints: tuple[RankEndpoint, ...]
    layout: ParallelLayout
    kv: KVSpec
    fingerprint: str
    block_tokens: int
    first_block: int
    num_blocks: int
    num_tokens: int
    lease_s: float
    transport: Transport = Transport.GRPC
    blocks: tuple[int, ...] = ()


# Commands: router to worker.


@dataclass(frozen=True, slots=True)
class Reserve:
    """Make room for prompt and output on a decode worker, load what is stored; answer Reserved.

    salt: the tenant's cache salt. session_id: "" for none. source: the worker that will compute
    the prompt. timeout_s: what is left of the request's deadline when sent.
    """

    request_id: str
    salt: str
    session_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    source: KvSource
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute the prompt, push its KV to the ticket's worker, sample the first token."""

    request_id: str
    salt: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    ticket: Ticket
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Abort:
    """End whatever this worker does for the request; nothing is answered. Idempotent."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The router lives: renew the leases of what it owns."""


@dataclass(frozen=True, slots=True)
class ResyncKv:
    """The router has missed KV events; answered by all of the worker's blocks, in `KvEvents`."""


Command = Reserve | Prefill | Abort | Heartbeat | ResyncKv

# Events: worker to router.


@dataclass(frozen=True, slots=True)
class Reserved:
    """Room is made. cached_tokens were on the device already, loaded_tokens came from the store."""

    request_id: str
    ticket: Ticket
    cached_tokens: int
    loaded_tokens: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt is computed and its first token sampled.

    queue_ns: Prefill received to first chunk started, stored KV read meanwhile included.
    prefill_ns: first chunk started to token sampled. computed_tokens: prompt tokens that went
    through the model here. finish: set where the first token is also the last.
    """

    request_id: str
    token: SampledToken
    finish: FinishReason | None
    queue_ns: int
    prefill_ns: int
    computed_tokens: int
    loaded_tokens: int


@dataclass(frozen=True, slots=True)
class FirstStep:
    """How a sequence joined the decode batch; see `eastwest.timing.SecondTokenParts`."""

    import_ns: int
    decode_queue_ns: int
    first_step_ns: int
    transfer_ns: int
    transfer_bytes: int


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """One sequence's share of a decode step. `first_step` is set with its first tokens only."""

    request_id: str
    tokens: tuple[SampledToken, ...]
    finish: FinishReason | None = None
    first_step: FirstStep | None = None


@dataclass(frozen=True, slots=True)
class Stepped:
    """One decode step of the whole batch: every sequence's tokens in one message."""

    outputs: tuple[SequenceOutput, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker ended its part of the request and holds nothing of it any more."""

    request_id: str
    code: ErrorCode
    message: str
    phase: Phase

    @classmethod
    def of(cls, request_id: str, error: EastWestError, phase: Phase) -> Failed:
        """`error` ended the request in `phase`, unless it names another one."""
        return cls(request_id, error.code, error.message, error.phase or phase)


@dataclass(frozen=True, slots=True)
class KvLink:
    """KV that came from one prefill worker since this incarnation began, in payload bytes.

    transport: that of the latest transfer.
    """

    source: str
    transport: Transport
    transfers: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """A worker's state, sent at least every heartbeat interval; also its sign of life.

    links: one entry a prefill worker. expert_tokens: pairs of token and expert that each rank
    has computed; empty for dense models. kv_sequence: of the last `KvEvents` before this report.
    """

    free_blocks: int
    cached_blocks: int
    num_blocks: int
    running: int
    waiting: int
    waiting_tokens: int
    leaked_blocks: int
    spilled_blocks: int
    sessions_inactive: int
    sessions_spilled: int
    transfer_bytes: int
    store_available: bool
    links: tuple[KvLink, ...] = ()
    expert_tokens: tuple[int, ...] = ()
    kv_sequence: int = 0


@dataclass(frozen=True, slots=True)
class TierBlocks:
    """Named blocks on one tier."""

    tier: Tier
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class KvEvents:
    """Which blocks a worker has come to hold, and to hold no more. Hints for placement.

    In this order: all blocks of the tiers in `cleared` are gone, then those in `removed`, and
    then those in `stored` are there. EXTERNAL blocks are what the worker has written to the
    offline store or found there, or not found there; the store's own evictions nobody tells.

    sequence: one more than that of the events before, from 1, whichever router they go to; a
    worker that has lost some skips a number. whole: a part of all that the worker holds, as of
    `sequence`, which all parts repeat; the first part clears. A router gets that when it connects
    and when it asks for it.
    """

    sequence: int
    cleared: tuple[Tier, ...] = ()
    removed: tuple[TierBlocks, ...] = ()
    stored: tuple[TierBlocks, ...] = ()
    whole: bool = False


Event = Reserved | Prefilled | Stepped | Failed | Load | KvEvents


class Liveness(enum.StrEnum):
    """How a router sees a worker."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
