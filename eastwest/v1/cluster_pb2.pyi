from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class DrainRequest(_message.Message):
    __slots__ = ("worker_id", "timeout_s")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    timeout_s: float
    def __init__(self, worker_id: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DrainReport(_message.Message):
    __slots__ = ("worker_id", "state", "running", "finished", "moved", "sessions_resting", "sessions_stored", "sessions_dropped", "elapsed_s", "others_serve")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_RESTING_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_STORED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    OTHERS_SERVE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    state: str
    running: int
    finished: int
    moved: int
    sessions_resting: int
    sessions_stored: int
    sessions_dropped: int
    elapsed_s: float
    others_serve: bool
    def __init__(self, worker_id: _Optional[str] = ..., state: _Optional[str] = ..., running: _Optional[int] = ..., finished: _Optional[int] = ..., moved: _Optional[int] = ..., sessions_resting: _Optional[int] = ..., sessions_stored: _Optional[int] = ..., sessions_dropped: _Optional[int] = ..., elapsed_s: _Optional[float] = ..., others_serve: _Optional[bool] = ...) -> None: ...

class CancelDrainRequest(_message.Message):
    __slots__ = ("worker_id",)
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    def __init__(self, worker_id: _Optional[str] = ...) -> None: ...

class CancelDrainResponse(_message.Message):
    __slots__ = ("was_draining",)
    WAS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    was_draining: bool
    def __init__(self, was_draining: _Optional[bool] = ...) -> None: ...
