from eastwest.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvFrame(_message.Message):
    __slots__ = ("header", "payload")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    header: FrameHeader
    payload: bytes
    def __init__(self, header: _Optional[_Union[FrameHeader, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class FrameHeader(_message.Message):
    __slots__ = ("transfer_id", "epoch", "source_rank", "layer_start", "layer_count", "block_start", "block_count", "head_start", "head_count", "checksum", "in_place")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_RANK_FIELD_NUMBER: _ClassVar[int]
    LAYER_START_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_START_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEAD_START_FIELD_NUMBER: _ClassVar[int]
    HEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    epoch: int
    source_rank: int
    layer_start: int
    layer_count: int
    block_start: int
    block_count: int
    head_start: int
    head_count: int
    checksum: int
    in_place: bool
    def __init__(self, transfer_id: _Optional[str] = ..., epoch: _Optional[int] = ..., source_rank: _Optional[int] = ..., layer_start: _Optional[int] = ..., layer_count: _Optional[int] = ..., block_start: _Optional[int] = ..., block_count: _Optional[int] = ..., head_start: _Optional[int] = ..., head_count: _Optional[int] = ..., checksum: _Optional[int] = ..., in_place: _Optional[bool] = ...) -> None: ...

class PushReceipt(_message.Message):
    __slots__ = ("accepted_bytes", "accepted_frames", "duplicate_frames", "corrupt_frames")
    ACCEPTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FRAMES_FIELD_NUMBER: _ClassVar[int]
    accepted_bytes: int
    accepted_frames: int
    duplicate_frames: int
    corrupt_frames: int
    def __init__(self, accepted_bytes: _Optional[int] = ..., accepted_frames: _Optional[int] = ..., duplicate_frames: _Optional[int] = ..., corrupt_frames: _Optional[int] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("transfer_id", "epoch", "first_token", "finished", "check")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    epoch: int
    first_token: _worker_pb2.SampledToken
    finished: bool
    check: int
    def __init__(self, transfer_id: _Optional[str] = ..., epoch: _Optional[int] = ..., first_token: _Optional[_Union[_worker_pb2.SampledToken, _Mapping]] = ..., finished: _Optional[bool] = ..., check: _Optional[int] = ...) -> None: ...

class CommitReceipt(_message.Message):
    __slots__ = ("committed", "missing", "transfer_id", "check")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    committed: bool
    missing: _containers.RepeatedCompositeFieldContainer[FrameSlice]
    transfer_id: str
    check: int
    def __init__(self, committed: _Optional[bool] = ..., missing: _Optional[_Iterable[_Union[FrameSlice, _Mapping]]] = ..., transfer_id: _Optional[str] = ..., check: _Optional[int] = ...) -> None: ...

class FrameSlice(_message.Message):
    __slots__ = ("layer_start", "layer_count", "block_start", "block_count", "head_start", "head_count", "rank")
    LAYER_START_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_START_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEAD_START_FIELD_NUMBER: _ClassVar[int]
    HEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    layer_start: int
    layer_count: int
    block_start: int
    block_count: int
    head_start: int
    head_count: int
    rank: int
    def __init__(self, layer_start: _Optional[int] = ..., layer_count: _Optional[int] = ..., block_start: _Optional[int] = ..., block_count: _Optional[int] = ..., head_start: _Optional[int] = ..., head_count: _Optional[int] = ..., rank: _Optional[int] = ...) -> None: ...

class AbortTransferRequest(_message.Message):
    __slots__ = ("transfer_id", "epoch", "check")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    epoch: int
    check: int
    def __init__(self, transfer_id: _Optional[str] = ..., epoch: _Optional[int] = ..., check: _Optional[int] = ...) -> None: ...

class AbortTransferReceipt(_message.Message):
    __slots__ = ("check",)
    CHECK_FIELD_NUMBER: _ClassVar[int]
    check: int
    def __init__(self, check: _Optional[int] = ...) -> None: ...
