from eastwest.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RankCommand(_message.Message):
    __slots__ = ("call", "join", "step", "open", "close", "missing", "begin", "ready", "drain", "resend", "stop", "read", "write", "alive")
    CALL_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    RESEND_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    call: int
    join: Join
    step: RankStep
    open: OpenTransfer
    close: CloseTransfer
    missing: MissingOf
    begin: BeginPush
    ready: PushReady
    drain: DrainPush
    resend: ResendPush
    stop: StopPush
    read: ReadBlocks
    write: WriteBlocks
    alive: Alive
    def __init__(self, call: _Optional[int] = ..., join: _Optional[_Union[Join, _Mapping]] = ..., step: _Optional[_Union[RankStep, _Mapping]] = ..., open: _Optional[_Union[OpenTransfer, _Mapping]] = ..., close: _Optional[_Union[CloseTransfer, _Mapping]] = ..., missing: _Optional[_Union[MissingOf, _Mapping]] = ..., begin: _Optional[_Union[BeginPush, _Mapping]] = ..., ready: _Optional[_Union[PushReady, _Mapping]] = ..., drain: _Optional[_Union[DrainPush, _Mapping]] = ..., resend: _Optional[_Union[ResendPush, _Mapping]] = ..., stop: _Optional[_Union[StopPush, _Mapping]] = ..., read: _Optional[_Union[ReadBlocks, _Mapping]] = ..., write: _Optional[_Union[WriteBlocks, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "epoch", "rank", "layout", "rendezvous")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    epoch: int
    rank: int
    layout: _worker_pb2.Layout
    rendezvous: str
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., rank: _Optional[int] = ..., layout: _Optional[_Union[_worker_pb2.Layout, _Mapping]] = ..., rendezvous: _Optional[str] = ...) -> None: ...

class RankStep(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[RankRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[RankRow, _Mapping]]] = ...) -> None: ...

class RankRow(_message.Message):
    __slots__ = ("tokens", "start", "blocks", "samples", "transfer_id")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    start: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    samples: bool
    transfer_id: str
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., start: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ..., samples: _Optional[bool] = ..., transfer_id: _Optional[str] = ...) -> None: ...

class OpenTransfer(_message.Message):
    __slots__ = ("transfer_id", "blocks", "first_block", "num_blocks", "num_tokens", "transport")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    first_block: int
    num_blocks: int
    num_tokens: int
    transport: str
    def __init__(self, transfer_id: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ..., first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_tokens: _Optional[int] = ..., transport: _Optional[str] = ...) -> None: ...

class CloseTransfer(_message.Message):
    __slots__ = ("transfer_id", "reason")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    reason: str
    def __init__(self, transfer_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class MissingOf(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class BeginPush(_message.Message):
    __slots__ = ("ticket", "blocks", "timeout_s")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    ticket: _worker_pb2.Ticket
    blocks: _containers.RepeatedScalarFieldContainer[int]
    timeout_s: float
    def __init__(self, ticket: _Optional[_Union[_worker_pb2.Ticket, _Mapping]] = ..., blocks: _Optional[_Iterable[int]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class PushReady(_message.Message):
    __slots__ = ("transfer_id", "tokens")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    tokens: int
    def __init__(self, transfer_id: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class DrainPush(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class ResendPush(_message.Message):
    __slots__ = ("transfer_id", "missing")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    missing: _containers.RepeatedCompositeFieldContainer[RankRegion]
    def __init__(self, transfer_id: _Optional[str] = ..., missing: _Optional[_Iterable[_Union[RankRegion, _Mapping]]] = ...) -> None: ...

class StopPush(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class ReadBlocks(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, blocks: _Optional[_Iterable[int]] = ...) -> None: ...

class WriteBlocks(_message.Message):
    __slots__ = ("blocks", "payloads")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedScalarFieldContainer[int]
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, blocks: _Optional[_Iterable[int]] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankRegion(_message.Message):
    __slots__ = ("rank", "layer_start", "layer_count", "block_start", "block_count", "head_start", "head_count")
    RANK_FIELD_NUMBER: _ClassVar[int]
    LAYER_START_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_START_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEAD_START_FIELD_NUMBER: _ClassVar[int]
    HEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    layer_start: int
    layer_count: int
    block_start: int
    block_count: int
    head_start: int
    head_count: int
    def __init__(self, rank: _Optional[int] = ..., layer_start: _Optional[int] = ..., layer_count: _Optional[int] = ..., block_start: _Optional[int] = ..., block_count: _Optional[int] = ..., head_start: _Optional[int] = ..., head_count: _Optional[int] = ...) -> None: ...

class RankEvent(_message.Message):
    __slots__ = ("joined", "progress", "arrived", "reply", "alive")
    JOINED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    joined: Joined
    progress: TransferProgress
    arrived: TransferArrived
    reply: Reply
    alive: RankAlive
    def __init__(self, joined: _Optional[_Union[Joined, _Mapping]] = ..., progress: _Optional[_Union[TransferProgress, _Mapping]] = ..., arrived: _Optional[_Union[TransferArrived, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., alive: _Optional[_Union[RankAlive, _Mapping]] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("fingerprint", "num_blocks", "block_tokens", "memory", "host", "transports", "address")
    class MemoryEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    num_blocks: int
    block_tokens: int
    memory: _containers.ScalarMap[str, str]
    host: str
    transports: _containers.RepeatedScalarFieldContainer[str]
    address: str
    def __init__(self, fingerprint: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_tokens: _Optional[int] = ..., memory: _Optional[_Mapping[str, str]] = ..., host: _Optional[str] = ..., transports: _Optional[_Iterable[str]] = ..., address: _Optional[str] = ...) -> None: ...

class TransferProgress(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class TransferArrived(_message.Message):
    __slots__ = ("transfer_id", "bytes", "frames", "transfer_ns", "since_last_ns")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_NS_FIELD_NUMBER: _ClassVar[int]
    SINCE_LAST_NS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    bytes: int
    frames: int
    transfer_ns: int
    since_last_ns: int
    def __init__(self, transfer_id: _Optional[str] = ..., bytes: _Optional[int] = ..., frames: _Optional[int] = ..., transfer_ns: _Optional[int] = ..., since_last_ns: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("call", "error", "message", "missing", "totals", "payloads")
    CALL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    call: int
    error: str
    message: str
    missing: _containers.RepeatedCompositeFieldContainer[RankRegion]
    totals: PushTotals
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, call: _Optional[int] = ..., error: _Optional[str] = ..., message: _Optional[str] = ..., missing: _Optional[_Iterable[_Union[RankRegion, _Mapping]]] = ..., totals: _Optional[_Union[PushTotals, _Mapping]] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PushTotals(_message.Message):
    __slots__ = ("bytes", "frames", "resent_frames")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    RESENT_FRAMES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    frames: int
    resent_frames: int
    def __init__(self, bytes: _Optional[int] = ..., frames: _Optional[int] = ..., resent_frames: _Optional[int] = ...) -> None: ...

class RankAlive(_message.Message):
    __slots__ = ("expert_tokens",)
    EXPERT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    expert_tokens: int
    def __init__(self, expert_tokens: _Optional[int] = ...) -> None: ...
