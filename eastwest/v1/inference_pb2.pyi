from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ABORT: _ClassVar[FinishReason]
    FINISH_REASON_ERROR: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ABORT: FinishReason
FINISH_REASON_ERROR: FinishReason

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop", "stop_token_ids", "max_tokens", "min_tokens", "ignore_eos", "logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ...) -> None: ...

class TokenizedInput(_message.Message):
    __slots__ = ("input_ids", "original_text")
    INPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_TEXT_FIELD_NUMBER: _ClassVar[int]
    input_ids: _containers.RepeatedScalarFieldContainer[int]
    original_text: str
    def __init__(self, input_ids: _Optional[_Iterable[int]] = ..., original_text: _Optional[str] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("id", "must_exist")
    ID_FIELD_NUMBER: _ClassVar[int]
    MUST_EXIST_FIELD_NUMBER: _ClassVar[int]
    id: str
    must_exist: bool
    def __init__(self, id: _Optional[str] = ..., must_exist: _Optional[bool] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "text", "tokenized", "sampling_params", "stream", "model", "tenant", "session", "priority", "slo_ttft_s", "slo_tpot_s")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PARAMS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SLO_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    SLO_TPOT_S_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    tokenized: TokenizedInput
    sampling_params: SamplingParams
    stream: bool
    model: str
    tenant: str
    session: Session
    priority: int
    slo_ttft_s: float
    slo_tpot_s: float
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., tokenized: _Optional[_Union[TokenizedInput, _Mapping]] = ..., sampling_params: _Optional[_Union[SamplingParams, _Mapping]] = ..., stream: _Optional[bool] = ..., model: _Optional[str] = ..., tenant: _Optional[str] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., priority: _Optional[int] = ..., slo_ttft_s: _Optional[float] = ..., slo_tpot_s: _Optional[float] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class ChatRequest(_message.Message):
    __slots__ = ("request_id", "messages", "sampling_params", "stream", "model", "tenant", "session", "priority", "slo_ttft_s", "slo_tpot_s")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PARAMS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SLO_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    SLO_TPOT_S_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    sampling_params: SamplingParams
    stream: bool
    model: str
    tenant: str
    session: Session
    priority: int
    slo_ttft_s: float
    slo_tpot_s: float
    def __init__(self, request_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., sampling_params: _Optional[_Union[SamplingParams, _Mapping]] = ..., stream: _Optional[bool] = ..., model: _Optional[str] = ..., tenant: _Optional[str] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., priority: _Optional[int] = ..., slo_ttft_s: _Optional[float] = ..., slo_tpot_s: _Optional[float] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("chunk", "complete")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    chunk: GenerateStreamChunk
    complete: GenerateComplete
    def __init__(self, chunk: _Optional[_Union[GenerateStreamChunk, _Mapping]] = ..., complete: _Optional[_Union[GenerateComplete, _Mapping]] = ...) -> None: ...

class GenerateStreamChunk(_message.Message):
    __slots__ = ("token_ids", "text", "logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token", "logprob", "top")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token", "logprob")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class GenerateComplete(_message.Message):
    __slots__ = ("request_id", "output_ids", "text", "finish_reason", "matched_token_id", "matched_stop_str", "usage", "timing", "prefill_worker", "decode_worker", "logprobs", "transfer_bytes", "transfer_ns")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_STR_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    DECODE_WORKER_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_NS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    output_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    finish_reason: FinishReason
    matched_token_id: int
    matched_stop_str: str
    usage: Usage
    timing: RequestTiming
    prefill_worker: str
    decode_worker: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    transfer_bytes: int
    transfer_ns: int
    def __init__(self, request_id: _Optional[str] = ..., output_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., matched_token_id: _Optional[int] = ..., matched_stop_str: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timing: _Optional[_Union[RequestTiming, _Mapping]] = ..., prefill_worker: _Optional[str] = ..., decode_worker: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., transfer_bytes: _Optional[int] = ..., transfer_ns: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "cached_tokens", "loaded_tokens", "computed_tokens", "migrations", "recomputed_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOADED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    loaded_tokens: int
    computed_tokens: int
    migrations: int
    recomputed_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., loaded_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., migrations: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ...) -> None: ...

class RequestTiming(_message.Message):
    __slots__ = ("ttft_ns", "admission_ns", "queue_ns", "reservation_ns", "prefill_ns", "delivery_ns", "second_token_ns", "exposed_transfer_ns", "import_ns", "decode_queue_ns", "first_step_ns", "e2e_ns", "migration_ns")
    TTFT_NS_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_NS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_NS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_NS_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_NS_FIELD_NUMBER: _ClassVar[int]
    SECOND_TOKEN_NS_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_TRANSFER_NS_FIELD_NUMBER: _ClassVar[int]
    IMPORT_NS_FIELD_NUMBER: _ClassVar[int]
    DECODE_QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_NS_FIELD_NUMBER: _ClassVar[int]
    E2E_NS_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_NS_FIELD_NUMBER: _ClassVar[int]
    ttft_ns: int
    admission_ns: int
    queue_ns: int
    reservation_ns: int
    prefill_ns: int
    delivery_ns: int
    second_token_ns: int
    exposed_transfer_ns: int
    import_ns: int
    decode_queue_ns: int
    first_step_ns: int
    e2e_ns: int
    migration_ns: int
    def __init__(self, ttft_ns: _Optional[int] = ..., admission_ns: _Optional[int] = ..., queue_ns: _Optional[int] = ..., reservation_ns: _Optional[int] = ..., prefill_ns: _Optional[int] = ..., delivery_ns: _Optional[int] = ..., second_token_ns: _Optional[int] = ..., exposed_transfer_ns: _Optional[int] = ..., import_ns: _Optional[int] = ..., decode_queue_ns: _Optional[int] = ..., first_step_ns: _Optional[int] = ..., e2e_ns: _Optional[int] = ..., migration_ns: _Optional[int] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_id", "tenant")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id", "tenant")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "policy", "state", "message", "age_s", "ended_s", "prompt_tokens", "output_tokens", "max_tokens", "slo_ttft_s", "slo_tpot_s", "migrations", "decisions", "decisions_left_out", "comparisons")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    ENDED_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SLO_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    SLO_TPOT_S_FIELD_NUMBER: _ClassVar[int]
    MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    COMPARISONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    policy: str
    state: str
    message: str
    age_s: float
    ended_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    slo_ttft_s: float
    slo_tpot_s: float
    migrations: int
    decisions: _containers.RepeatedCompositeFieldContainer[PlacementDecision]
    decisions_left_out: int
    comparisons: _containers.RepeatedCompositeFieldContainer[TimeComparison]
    def __init__(self, request_id: _Optional[str] = ..., policy: _Optional[str] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., age_s: _Optional[float] = ..., ended_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., slo_ttft_s: _Optional[float] = ..., slo_tpot_s: _Optional[float] = ..., migrations: _Optional[int] = ..., decisions: _Optional[_Iterable[_Union[PlacementDecision, _Mapping]]] = ..., decisions_left_out: _Optional[int] = ..., comparisons: _Optional[_Iterable[_Union[TimeComparison, _Mapping]]] = ...) -> None: ...

class PlacementDecision(_message.Message):
    __slots__ = ("at_s", "waiting", "given_tokens", "prefill", "decode", "blocks", "prefill_known_tokens", "decode_known_tokens", "reason", "predictions", "left_out", "workers", "workers_up", "loss", "lost_s", "lender")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    GIVEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_KNOWN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_KNOWN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_UP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOST_S_FIELD_NUMBER: _ClassVar[int]
    LENDER_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    waiting: int
    given_tokens: int
    prefill: str
    decode: str
    blocks: int
    prefill_known_tokens: int
    decode_known_tokens: int
    reason: str
    predictions: _containers.RepeatedCompositeFieldContainer[PairPrediction]
    left_out: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerEstimate]
    workers_up: int
    loss: str
    lost_s: float
    lender: str
    def __init__(self, at_s: _Optional[float] = ..., waiting: _Optional[int] = ..., given_tokens: _Optional[int] = ..., prefill: _Optional[str] = ..., decode: _Optional[str] = ..., blocks: _Optional[int] = ..., prefill_known_tokens: _Optional[int] = ..., decode_known_tokens: _Optional[int] = ..., reason: _Optional[str] = ..., predictions: _Optional[_Iterable[_Union[PairPrediction, _Mapping]]] = ..., left_out: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerEstimate, _Mapping]]] = ..., workers_up: _Optional[int] = ..., loss: _Optional[str] = ..., lost_s: _Optional[float] = ..., lender: _Optional[str] = ...) -> None: ...

class PairPrediction(_message.Message):
    __slots__ = ("prefill", "decode", "known_tokens", "queue_s", "prefill_s", "transfer_s", "step_s", "own", "others", "chosen")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    KNOWN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    prefill: str
    decode: str
    known_tokens: int
    queue_s: float
    prefill_s: float
    transfer_s: float
    step_s: float
    own: float
    others: float
    chosen: bool
    def __init__(self, prefill: _Optional[str] = ..., decode: _Optional[str] = ..., known_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., transfer_s: _Optional[float] = ..., step_s: _Optional[float] = ..., own: _Optional[float] = ..., others: _Optional[float] = ..., chosen: _Optional[bool] = ...) -> None: ...

class WorkerEstimate(_message.Message):
    __slots__ = ("worker_id", "epoch", "role", "waiting_tokens", "sequences", "context_tokens", "room_blocks", "known_tokens")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROOM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    role: str
    waiting_tokens: int
    sequences: int
    context_tokens: int
    room_blocks: int
    known_tokens: int
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., waiting_tokens: _Optional[int] = ..., sequences: _Optional[int] = ..., context_tokens: _Optional[int] = ..., room_blocks: _Optional[int] = ..., known_tokens: _Optional[int] = ...) -> None: ...

class TimeComparison(_message.Message):
    __slots__ = ("part", "predicted_s", "measured_s")
    PART_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_S_FIELD_NUMBER: _ClassVar[int]
    part: str
    predicted_s: float
    measured_s: float
    def __init__(self, part: _Optional[str] = ..., predicted_s: _Optional[float] = ..., measured_s: _Optional[float] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("model", "architecture", "dtype", "max_context_length", "vocab_size", "eos_token_ids", "kv_bytes_per_token", "fingerprint", "has_chat_template")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    architecture: str
    dtype: str
    max_context_length: int
    vocab_size: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    kv_bytes_per_token: int
    fingerprint: str
    has_chat_template: bool
    def __init__(self, model: _Optional[str] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., max_context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., kv_bytes_per_token: _Optional[int] = ..., fingerprint: _Optional[str] = ..., has_chat_template: _Optional[bool] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "router_id", "protocol_version", "uptime_s", "workers")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    version: str
    router_id: str
    protocol_version: int
    uptime_s: float
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    def __init__(self, version: _Optional[str] = ..., router_id: _Optional[str] = ..., protocol_version: _Optional[int] = ..., uptime_s: _Optional[float] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ...) -> None: ...

class GetLoadsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadsResponse(_message.Message):
    __slots__ = ("waiting", "active", "workers", "completed", "failed", "migrations", "kv_index")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    KV_INDEX_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    active: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    completed: int
    failed: int
    migrations: int
    kv_index: KvIndexStatus
    def __init__(self, waiting: _Optional[int] = ..., active: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., migrations: _Optional[int] = ..., kv_index: _Optional[_Union[KvIndexStatus, _Mapping]] = ...) -> None: ...

class KvIndexStatus(_message.Message):
    __slots__ = ("blocks", "resyncs", "prefill", "decode")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RESYNCS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    resyncs: int
    prefill: KvHits
    decode: KvHits
    def __init__(self, blocks: _Optional[int] = ..., resyncs: _Optional[int] = ..., prefill: _Optional[_Union[KvHits, _Mapping]] = ..., decode: _Optional[_Union[KvHits, _Mapping]] = ...) -> None: ...

class KvHits(_message.Message):
    __slots__ = ("prompt_tokens", "predicted_tokens", "found_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FOUND_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    predicted_tokens: int
    found_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., predicted_tokens: _Optional[int] = ..., found_tokens: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker_id", "epoch", "role", "liveness", "address", "layout", "num_blocks", "block_tokens", "free_blocks", "cached_blocks", "running", "waiting", "leaked_blocks", "spilled_blocks", "sessions_inactive", "sessions_spilled", "transfer_bytes", "store_available", "kv_dtype", "links", "expert_tokens")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LIVENESS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LEAKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SPILLED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_INACTIVE_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_SPILLED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORE_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    KV_DTYPE_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    role: str
    liveness: str
    address: str
    layout: str
    num_blocks: int
    block_tokens: int
    free_blocks: int
    cached_blocks: int
    running: int
    waiting: int
    leaked_blocks: int
    spilled_blocks: int
    sessions_inactive: int
    sessions_spilled: int
    transfer_bytes: int
    store_available: bool
    kv_dtype: str
    links: _containers.RepeatedCompositeFieldContainer[KvLinkStatus]
    expert_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., liveness: _Optional[str] = ..., address: _Optional[str] = ..., layout: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_tokens: _Optional[int] = ..., free_blocks: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., leaked_blocks: _Optional[int] = ..., spilled_blocks: _Optional[int] = ..., sessions_inactive: _Optional[int] = ..., sessions_spilled: _Optional[int] = ..., transfer_bytes: _Optional[int] = ..., store_available: _Optional[bool] = ..., kv_dtype: _Optional[str] = ..., links: _Optional[_Iterable[_Union[KvLinkStatus, _Mapping]]] = ..., expert_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class KvLinkStatus(_message.Message):
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
