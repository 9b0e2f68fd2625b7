from eastwest.v1 import kv_transfer_pb2 as _kv_transfer_pb2
from eastwest.v1 import worker_pb2 as _worker_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlockChain(_message.Message):
    __slots__ = ("epoch", "fingerprint", "kv", "block_tokens", "hashes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    fingerprint: str
    kv: _worker_pb2.KvSpec
    block_tokens: int
    hashes: bytes
    def __init__(self, epoch: _Optional[int] = ..., fingerprint: _Optional[str] = ..., kv: _Optional[_Union[_worker_pb2.KvSpec, _Mapping]] = ..., block_tokens: _Optional[int] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class BlockMatch(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...
