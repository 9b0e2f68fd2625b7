"""What a client gets back: chunks, completions and descriptions of the server, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.messages import KvLink
from eastwest.timing import Timing
from eastwest.types import FinishReason, Liveness, Role, SampledToken, Usage


@dataclass(frozen=True, slots=True)
class Chunk:
    """New output since the last chunk.

    token_ids: in order; over all chunks of a request each token appears exactly once. text: as
    far as it is final; the texts of all chunks together are the completion's text. logprobs: one
    entry a token where asked for, else empty.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[SampledToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request: the whole output and how it came about.

    text: without the end token or stop string that ended it. matched_stop: the token id or the
    stop string, where finish_reason is STOP. timing: each list of parts sums exactly to its
    total. prefill_worker, decode_worker: the last ones, where the request was moved.
    transfer_bytes, transfer_ns: KV that moved from prefill to decode workers, and how long that
    took in all (overlapped with compute; what was not hidden is in timing).
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    matched_stop: int | str | None
    usage: Usage
    timing: Timing
    prefill_worker: str
    decode_worker: str
    transfer_bytes: int
    transfer_ns: int
    logprobs: tuple[SampledToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model behind a server. kv_bytes_per_token: over all layers and heads."""

    name: str
    architecture: str
    dtype: str
    context_tokens: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    kv_bytes_per_token: int
    fingerprint: str
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as the router sees it. epoch: 0 and role None while it never connected.

    What stands below `block_tokens` is as the worker last reported it. links: KV that came to it,
    one entry a prefill worker. expert_tokens: see `eastwest.messages.Load`.
    """

    worker_id: str
    epoch: int
    role: Role | None
    liveness: Liveness
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
    links: tuple[KvLink, ...]
    expert_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Who answers. uptime_s: since the router started."""

    version: str
    router_id: str
    protocol_version: int
    uptime_s: float
    workers: tuple[WorkerStatus, ...]


@dataclass(frozen=True, slots=True)
class KvHits:
    """Of prompts that workers of one phase took: tokens in all, tokens whose KV the router thought
    the worker had or would find in the store, and tokens whose KV it had or found."""

    prompt_tokens: int = 0
    predicted_tokens: int = 0
    found_tokens: int = 0

    @property
    def rate(self) -> float:
        """Share of prompt tokens whose KV was there."""
        return self.found_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class KvIndexStatus:
    """What the router knows of KV: blocks with a known holder; how often it asked a worker for all
    of its blocks, having missed changes; and how right it was."""

    blocks: int
    resyncs: int
    prefill: KvHits
    decode: KvHits


@dataclass(frozen=True, slots=True)
class ServerLoads:
    """Requests waiting in the router, being served, and ended since it started.

    migrations: how often those that ended were moved to other workers while they ran.
    """

    waiting: int
    active: int
    completed: int
    failed: int
    migrations: int
    workers: tuple[WorkerStatus, ...]
    kv_index: KvIndexStatus
