from eastwest.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouterMessage(_message.Message):
    __slots__ = ("hello", "commands")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    commands: Commands
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., commands: _Optional[_Union[Commands, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("router_id", "protocol_version")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    protocol_version: int
    def __init__(self, router_id: _Optional[str] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class Commands(_message.Message):
    __slots__ = ("epoch", "commands")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, epoch: _Optional[int] = ..., commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("reserve", "prefill", "abort", "heartbeat", "resync_kv", "drain", "undrain", "dismiss", "step_budget", "erase")
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RESYNC_KV_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    UNDRAIN_FIELD_NUMBER: _ClassVar[int]
    DISMISS_FIELD_NUMBER: _ClassVar[int]
    STEP_BUDGET_FIELD_NUMBER: _ClassVar[int]
    ERASE_FIELD_NUMBER: _ClassVar[int]
    reserve: Reserve
    prefill: Prefill
    abort: AbortWork
    heartbeat: Heartbeat
    resync_kv: ResyncKv
    drain: Drain
    undrain: Undrain
    dismiss: Dismiss
    step_budget: StepBudget
    erase: Erase
    def __init__(self, reserve: _Optional[_Union[Reserve, _Mapping]] = ..., prefill: _Optional[_Union[Prefill, _Mapping]] = ..., abort: _Optional[_Union[AbortWork, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., resync_kv: _Optional[_Union[ResyncKv, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., undrain: _Optional[_Union[Undrain, _Mapping]] = ..., dismiss: _Optional[_Union[Dismiss, _Mapping]] = ..., step_budget: _Optional[_Union[StepBudget, _Mapping]] = ..., erase: _Optional[_Union[Erase, _Mapping]] = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ("request_id", "salt", "session_id", "prompt", "sampling", "max_tokens", "timeout_s", "source", "output", "leave_stored")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_STORED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    salt: str
    session_id: str
    prompt: _containers.RepeatedScalarFieldContainer[int]
    sampling: _inference_pb2.SamplingParams
    max_tokens: int
    timeout_s: float
    source: KvSource
    output: _containers.RepeatedScalarFieldContainer[int]
    leave_stored: bool
    def __init__(self, request_id: _Optional[str] = ..., salt: _Optional[str] = ..., session_id: _Optional[str] = ..., prompt: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_inference_pb2.SamplingParams, _Mapping]] = ..., max_tokens: _Optional[int] = ..., timeout_s: _Optional[float] = ..., source: _Optional[_Union[KvSource, _Mapping]] = ..., output: _Optional[_Iterable[int]] = ..., leave_stored: _Optional[bool] = ...) -> None: ...

class KvSource(_message.Message):
    __slots__ = ("worker_id", "epoch", "fingerprint", "layout", "kv", "block_tokens", "host", "transports", "protocol_version", "address")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    fingerprint: str
    layout: Layout
    kv: KvSpec
    block_tokens: int
    host: str
    transports: _containers.RepeatedScalarFieldContainer[str]
    protocol_version: int
    address: str
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., fingerprint: _Optional[str] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., kv: _Optional[_Union[KvSpec, _Mapping]] = ..., block_tokens: _Optional[int] = ..., host: _Optional[str] = ..., transports: _Optional[_Iterable[str]] = ..., protocol_version: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class Prefill(_message.Message):
    __slots__ = ("request_id", "salt", "prompt", "sampling", "max_tokens", "ticket", "timeout_s", "output", "meet_tokens", "lender")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    MEET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENDER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    salt: str
    prompt: _containers.RepeatedScalarFieldContainer[int]
    sampling: _inference_pb2.SamplingParams
    max_tokens: int
    ticket: Ticket
    timeout_s: float
    output: _containers.RepeatedScalarFieldContainer[int]
    meet_tokens: int
    lender: KvSource
    def __init__(self, request_id: _Optional[str] = ..., salt: _Optional[str] = ..., prompt: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_inference_pb2.SamplingParams, _Mapping]] = ..., max_tokens: _Optional[int] = ..., ticket: _Optional[_Union[Ticket, _Mapping]] = ..., timeout_s: _Optional[float] = ..., output: _Optional[_Iterable[int]] = ..., meet_tokens: _Optional[int] = ..., lender: _Optional[_Union[KvSource, _Mapping]] = ...) -> None: ...

class AbortWork(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResyncKv(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drain(_message.Message):
    __slots__ = ("timeout_s",)
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    timeout_s: float
    def __init__(self, timeout_s: _Optional[float] = ...) -> None: ...

class Undrain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Dismiss(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StepBudget(_message.Message):
    __slots__ = ("prompt_tokens",)
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ...) -> None: ...

class Erase(_message.Message):
    __slots__ = ("salt", "session_id", "tokens", "keep_tokens")
    SALT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    salt: str
    session_id: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    keep_tokens: int
    def __init__(self, salt: _Optional[str] = ..., session_id: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., keep_tokens: _Optional[int] = ...) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("welcome", "events")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    events: Events
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., events: _Optional[_Union[Events, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("worker_id", "epoch", "role", "address", "model", "layout", "block_tokens", "num_blocks", "running_max", "protocol_version", "step_tokens", "host", "transports", "draining_s")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_MAX_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_S_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    role: str
    address: str
    model: Model
    layout: Layout
    block_tokens: int
    num_blocks: int
    running_max: int
    protocol_version: int
    step_tokens: int
    host: str
    transports: _containers.RepeatedScalarFieldContainer[str]
    draining_s: float
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., address: _Optional[str] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., block_tokens: _Optional[int] = ..., num_blocks: _Optional[int] = ..., running_max: _Optional[int] = ..., protocol_version: _Optional[int] = ..., step_tokens: _Optional[int] = ..., host: _Optional[str] = ..., transports: _Optional[_Iterable[str]] = ..., draining_s: _Optional[float] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "fingerprint", "architecture", "dtype", "context_tokens", "vocab_size", "eos_ids", "kv")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EOS_IDS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    architecture: str
    dtype: str
    context_tokens: int
    vocab_size: int
    eos_ids: _containers.RepeatedScalarFieldContainer[int]
    kv: KvSpec
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., context_tokens: _Optional[int] = ..., vocab_size: _Optional[int] = ..., eos_ids: _Optional[_Iterable[int]] = ..., kv: _Optional[_Union[KvSpec, _Mapping]] = ...) -> None: ...

class KvSpec(_message.Message):
    __slots__ = ("num_layers", "num_kv_heads", "key_dim", "value_dim", "dtype")
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    KEY_DIM_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    num_layers: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: str
    def __init__(self, num_layers: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., key_dim: _Optional[int] = ..., value_dim: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("tp", "pp", "ep", "dp")
    TP_FIELD_NUMBER: _ClassVar[int]
    PP_FIELD_NUMBER: _ClassVar[int]
    EP_FIELD_NUMBER: _ClassVar[int]
    DP_FIELD_NUMBER: _ClassVar[int]
    tp: int
    pp: int
    ep: int
    dp: int
    def __init__(self, tp: _Optional[int] = ..., pp: _Optional[int] = ..., ep: _Optional[int] = ..., dp: _Optional[int] = ...) -> None: ...

class RankEndpoint(_message.Message):
    __slots__ = ("rank", "address", "memory")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    rank: int
    address: str
    memory: str
    def __init__(self, rank: _Optional[int] = ..., address: _Optional[str] = ..., memory: _Optional[str] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("transfer_id", "worker_id", "epoch", "endpoints", "layout", "kv", "fingerprint", "block_tokens", "first_block", "num_blocks", "lease_s", "address", "num_tokens", "transport", "blocks")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    worker_id: str
    epoch: int
    endpoints: _containers.RepeatedCompositeFieldContainer[RankEndpoint]
    layout: Layout
    kv: KvSpec
    fingerprint: str
    block_tokens: int
    first_block: int
    num_blocks: int
    lease_s: float
    address: str
    num_tokens: int
    transport: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transfer_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., endpoints: _Optional[_Iterable[_Union[RankEndpoint, _Mapping]]] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., kv: _Optional[_Union[KvSpec, _Mapping]] = ..., fingerprint: _Optional[str] = ..., block_tokens: _Optional[int] = ..., first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., lease_s: _Optional[float] = ..., address: _Optional[str] = ..., num_tokens: _Optional[int] = ..., transport: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...

class Events(_message.Message):
    __slots__ = ("epoch", "events")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, epoch: _Optional[int] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("reserved", "prefilled", "stepped", "failed", "load", "kv", "drained")
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    STEPPED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    reserved: Reserved
    prefilled: Prefilled
    stepped: Stepped
    failed: Failed
    load: Load
    kv: KvEvents
    drained: Drained
    def __init__(self, reserved: _Optional[_Union[Reserved, _Mapping]] = ..., prefilled: _Optional[_Union[Prefilled, _Mapping]] = ..., stepped: _Optional[_Union[Stepped, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., kv: _Optional[_Union[KvEvents, _Mapping]] = ..., drained: _Optional[_Union[Drained, _Mapping]] = ...) -> None: ...

class Reserved(_message.Message):
    __slots__ = ("request_id", "ticket", "cached_tokens", "loaded_tokens", "load_ns")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOADED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOAD_NS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    ticket: Ticket
    cached_tokens: int
    loaded_tokens: int
    load_ns: int
    def __init__(self, request_id: _Optional[str] = ..., ticket: _Optional[_Union[Ticket, _Mapping]] = ..., cached_tokens: _Optional[int] = ..., loaded_tokens: _Optional[int] = ..., load_ns: _Optional[int] = ...) -> None: ...

class SampledToken(_message.Message):
    __slots__ = ("token", "logprob", "top")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TopLogprob]
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[_inference_pb2.TopLogprob, _Mapping]]] = ...) -> None: ...

class Prefilled(_message.Message):
    __slots__ = ("request_id", "token", "finish", "queue_ns", "prefill_ns", "computed_tokens", "loaded_tokens", "load_ns")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOADED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOAD_NS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token: SampledToken
    finish: _inference_pb2.FinishReason
    queue_ns: int
    prefill_ns: int
    computed_tokens: int
    loaded_tokens: int
    load_ns: int
    def __init__(self, request_id: _Optional[str] = ..., token: _Optional[_Union[SampledToken, _Mapping]] = ..., finish: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., queue_ns: _Optional[int] = ..., prefill_ns: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., loaded_tokens: _Optional[int] = ..., load_ns: _Optional[int] = ...) -> None: ...

class Stepped(_message.Message):
    __slots__ = ("outputs", "plain_ids", "plain_tokens", "plain_counts")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PLAIN_IDS_FIELD_NUMBER: _ClassVar[int]
    PLAIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLAIN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[SequenceOutput]
    plain_ids: _containers.RepeatedScalarFieldContainer[str]
    plain_tokens: _containers.RepeatedScalarFieldContainer[int]
    plain_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, outputs: _Optional[_Iterable[_Union[SequenceOutput, _Mapping]]] = ..., plain_ids: _Optional[_Iterable[str]] = ..., plain_tokens: _Optional[_Iterable[int]] = ..., plain_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class SequenceOutput(_message.Message):
    __slots__ = ("request_id", "tokens", "finish", "first_step")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tokens: _containers.RepeatedCompositeFieldContainer[SampledToken]
    finish: _inference_pb2.FinishReason
    first_step: FirstStep
    def __init__(self, request_id: _Optional[str] = ..., tokens: _Optional[_Iterable[_Union[SampledToken, _Mapping]]] = ..., finish: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., first_step: _Optional[_Union[FirstStep, _Mapping]] = ...) -> None: ...

class FirstStep(_message.Message):
    __slots__ = ("import_ns", "decode_queue_ns", "first_step_ns", "transfer_ns", "transfer_bytes")
    IMPORT_NS_FIELD_NUMBER: _ClassVar[int]
    DECODE_QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_NS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_NS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    import_ns: int
    decode_queue_ns: int
    first_step_ns: int
    transfer_ns: int
    transfer_bytes: int
    def __init__(self, import_ns: _Optional[int] = ..., decode_queue_ns: _Optional[int] = ..., first_step_ns: _Optional[int] = ..., transfer_ns: _Optional[int] = ..., transfer_bytes: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("request_id", "code", "message", "phase")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    code: str
    message: str
    phase: str
    def __init__(self, request_id: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., phase: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("free_blocks", "cached_blocks", "num_blocks", "running", "waiting", "waiting_tokens", "leaked_blocks", "spilled_blocks", "sessions_inactive", "sessions_spilled", "transfer_bytes", "store_available", "links", "expert_tokens", "kv_sequence", "draining_s")
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEAKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SPILLED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_INACTIVE_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_SPILLED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORE_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_S_FIELD_NUMBER: _ClassVar[int]
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
    links: _containers.RepeatedCompositeFieldContainer[KvLink]
    expert_tokens: _containers.RepeatedScalarFieldContainer[int]
    kv_sequence: int
    draining_s: float
    def __init__(self, free_blocks: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., num_blocks: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_tokens: _Optional[int] = ..., leaked_blocks: _Optional[int] = ..., spilled_blocks: _Optional[int] = ..., sessions_inactive: _Optional[int] = ..., sessions_spilled: _Optional[int] = ..., transfer_bytes: _Optional[int] = ..., store_available: _Optional[bool] = ..., links: _Optional[_Iterable[_Union[KvLink, _Mapping]]] = ..., expert_tokens: _Optional[_Iterable[int]] = ..., kv_sequence: _Optional[int] = ..., draining_s: _Optional[float] = ...) -> None: ...

class Drained(_message.Message):
    __slots__ = ("sessions_stored", "sessions_dropped")
    SESSIONS_STORED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    sessions_stored: int
    sessions_dropped: int
    def __init__(self, sessions_stored: _Optional[int] = ..., sessions_dropped: _Optional[int] = ...) -> None: ...

class KvLink(_message.Message):
    __slots__ = ("source", "transport", "transfers", "bytes")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    source: str
    transport: str
    transfers: int
    bytes: int
    def __init__(self, source: _Optional[str] = ..., transport: _Optional[str] = ..., transfers: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class KvEvents(_message.Message):
    __slots__ = ("sequence", "cleared", "removed", "stored", "whole")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    cleared: _containers.RepeatedScalarFieldContainer[str]
    removed: _containers.RepeatedCompositeFieldContainer[TierBlocks]
    stored: _containers.RepeatedCompositeFieldContainer[TierBlocks]
    whole: bool
    def __init__(self, sequence: _Optional[int] = ..., cleared: _Optional[_Iterable[str]] = ..., removed: _Optional[_Iterable[_Union[TierBlocks, _Mapping]]] = ..., stored: _Optional[_Iterable[_Union[TierBlocks, _Mapping]]] = ..., whole: _Optional[bool] = ...) -> None: ...

class TierBlocks(_message.Message):
    __slots__ = ("tier", "hashes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    hashes: bytes
    def __init__(self, tier: _Optional[str] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuditReport(_message.Message):
    __slots__ = ("num_blocks", "free_blocks", "cached_blocks", "held_blocks", "leaked_blocks", "owners", "findings", "running", "waiting", "transfers_open")
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEAKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_OPEN_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    free_blocks: int
    cached_blocks: int
    held_blocks: int
    leaked_blocks: int
    owners: _containers.RepeatedScalarFieldContainer[str]
    findings: _containers.RepeatedScalarFieldContainer[str]
    running: int
    waiting: int
    transfers_open: int
    def __init__(self, num_blocks: _Optional[int] = ..., free_blocks: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., held_blocks: _Optional[int] = ..., leaked_blocks: _Optional[int] = ..., owners: _Optional[_Iterable[str]] = ..., findings: _Optional[_Iterable[str]] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., transfers_open: _Optional[int] = ...) -> None: ...
