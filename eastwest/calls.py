"""The client's side of the public service: requests built, answers read. Pure.

Both clients (`eastwest.client`, `eastwest.sync_client`) send and understand the same messages
because they share this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from eastwest.answers import (
    Chunk,
    Completion,
    KvHits,
    KvIndexStatus,
    ServedModel,
    ServerInfo,
    ServerLoads,
    WorkerStatus,
)
from eastwest.errors import InternalError, InvalidArgument
from eastwest.messages import KvLink
from eastwest.rpc import Options, channel_options
from eastwest.timing import SecondTokenParts, Timing, TtftParts
from eastwest.types import Liveness, Role, SamplingParams, Usage
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import (
    finish_from_wire,
    logprobs_from_wire,
    sampling_to_wire,
    transport_from_wire,
)

Prompt = str | Sequence[int]
Message = Mapping[str, str]

# Answers may be long (log-probabilities of a whole context); a client trusts its server there.
_UNLIMITED = -1


class SamplingOptions(TypedDict, total=False):
    """Fields of `eastwest.types.SamplingParams`, given by name."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    logprobs: int | None


def client_options() -> Options:
    """Channel options of a client."""
    return channel_options(_UNLIMITED)


def resolve_sampling(
    sampling: SamplingParams | None, options: SamplingOptions
) -> inference.SamplingParams:
    """`sampling` (default: all defaults) with single `options` on top.

    Ranges are for the server to judge; a name or type that cannot be sent is refused here.
    """
    changes: dict[str, Any] = dict(options)
    if isinstance(stop := changes.get("stop"), str):
        changes["stop"] = (stop,)
    try:
        return sampling_to_wire(replace(sampling or SamplingParams(), **changes))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"sampling parameters cannot be sent: {error}") from error


@dataclass(frozen=True, slots=True)
class Addressing:
    """What says whose request it is, of which conversation, how urgent, and what it should see; as
    in `generate`."""

    tenant: str
    session: str | None
    must_exist: bool
    request_id: str
    model: str
    priority: int
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None

    def fill(self, request: inference.GenerateRequest | inference.ChatRequest) -> None:
        """Put it into `request`. Ranges are for the server to judge."""
        if self.must_exist and self.session is None:
            raise InvalidArgument(
                "must_exist is set without a session; allowed: with a session only"
            )
        try:
            request.request_id, request.model = self.request_id, self.model
            request.tenant, request.priority = self.tenant, self.priority
            if self.slo_ttft_s is not None:
                request.slo_ttft_s = self.slo_ttft_s
            if self.slo_tpot_s is not None:
                request.slo_tpot_s = self.slo_tpot_s
            if self.session is not None:
                request.session.id, request.session.must_exist = self.session, self.must_exist
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                f"a name, the priority or a target cannot be sent: {error}"
            ) from error


def prompt_to_wire(prompt: Prompt) -> inference.GenerateRequest:
    """A request that holds the prompt and nothing else."""
    try:
        if isinstance(prompt, str):
            return inference.GenerateRequest(text=prompt)
        return inference.GenerateRequest(tokenized=inference.TokenizedInput(input_ids=prompt))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"the prompt is neither valid text nor token ids from 0 up: {error}"
        ) from error


def messages_to_wire(messages: Sequence[Message]) -> inference.ChatRequest:
    """A request that holds the messages and nothing else."""
    request = inference.ChatRequest()
    for message in messages:
        if set(message) != {"role", "content"}:
            raise InvalidArgument(
                f"a message has {', '.join(sorted(message)) or 'nothing'}; allowed: role, content"
            )
        try:
            request.messages.add(role=message["role"], content=message["content"])
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"a message is not valid text: {error}") from error
    return request


def read_response(wire: inference.GenerateResponse) -> Chunk | Completion:
    """One message of a Generate or Chat stream."""
    match wire.WhichOneof("response"):
        case "chunk":
            chunk = wire.chunk
            return Chunk(tuple(chunk.token_ids), chunk.text, logprobs_from_wire(chunk.logprobs))
        case "complete":
            return _read_completion(wire.complete)
        case _:
            raise InternalError("the server sent a response that is neither chunk nor completion")


def _read_completion(wire: inference.GenerateComplete) -> Completion:
    finish = finish_from_wire(wire.finish_reason)
    if finish is None:
        raise InternalError("the server sent a completion without a finish reason")
    matched: int | str | None = None
    match wire.WhichOneof("matched_stop"):
        case "matched_token_id":
            matched = wire.matched_token_id
        case "matched_stop_str":
            matched = wire.matched_stop_str
    usage = wire.usage
    return Completion(
        request_id=wire.request_id,
        text=wire.text,
        token_ids=tuple(wire.output_ids),
        finish_reason=finish,
        matched_stop=matched,
        usage=Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.loaded_tokens,
            usage.computed_tokens,
            usage.migrations,
            usage.recomputed_tokens,
        ),
        timing=_read_timing(wire.timing),
        prefill_worker=wire.prefill_worker,
        decode_worker=wire.decode_worker,
        transfer_bytes=wire.transfer_bytes,
        transfer_ns=wire.transfer_ns,
        logprobs=logprobs_from_wire(wire.logprobs),
    )


def _read_timing(wire: inference.RequestTiming) -> Timing:
    ttft = TtftParts(
        wire.admission_ns, wire.queue_ns, wire.reservation_ns, wire.prefill_ns, wire.delivery_ns
    )
    second = None
    if wire.HasField("second_token_ns"):
        second = SecondTokenParts(
            wire.exposed_transfer_ns,
            wire.import_ns,
            wire.decode_queue_ns,
            wire.first_step_ns,
            wire.migration_ns,
        )
    return Timing(ttft, second, wire.e2e_ns)


def read_model(wire: inference.GetModelInfoResponse) -> ServedModel:
    return ServedModel(
        name=wire.model,
        architecture=wire.architecture,
        dtype=wire.dtype,
        context_tokens=wire.max_context_length,
        vocab_size=wire.vocab_size,
        eos_ids=tuple(wire.eos_token_ids),
        kv_bytes_per_token=wire.kv_bytes_per_token,
        fingerprint=wire.fingerprint,
        has_chat_template=wire.has_chat_template,
    )


def read_server(wire: inference.GetServerInfoResponse) -> ServerInfo:
    workers = tuple(_read_worker(w) for w in wire.workers)
    return ServerInfo(wire.version, wire.router_id, wire.protocol_version, wire.uptime_s, workers)


def read_loads(wire: inference.GetLoadsResponse) -> ServerLoads:
    workers = tuple(_read_worker(w) for w in wire.workers)
    kv = wire.kv_index
    index = KvIndexStatus(kv.blocks, kv.resyncs, _read_hits(kv.prefill), _read_hits(kv.decode))
    return ServerLoads(
        wire.waiting, wire.active, wire.completed, wire.failed, wire.migrations, workers, index
    )


def _read_hits(wire: inference.KvHits) -> KvHits:
    return KvHits(wire.prompt_tokens, wire.predicted_tokens, wire.found_tokens)


def _read_worker(wire: inference.WorkerStatus) -> WorkerStatus:
    return WorkerStatus(
        worker_id=wire.worker_id,
        epoch=wire.epoch,
        role=Role(wire.role) if wire.role in set(Role) else None,
        liveness=Liveness(wire.liveness) if wire.liveness in set(Liveness) else Liveness.DOWN,
        address=wire.address,
        layout=wire.layout,
        num_blocks=wire.num_blocks,
        block_tokens=wire.block_tokens,
        free_blocks=wire.free_blocks,
        cached_blocks=wire.cached_blocks,
        running=wire.running,
        waiting=wire.waiting,
        leaked_blocks=wire.leaked_blocks,
        spilled_blocks=wire.spilled_blocks,
        sessions_inactive=wire.sessions_inactive,
        sessions_spilled=wire.sessions_spilled,
        transfer_bytes=wire.transfer_bytes,
        store_available=wire.store_available,
        kv_dtype=wire.kv_dtype,
        links=tuple(
            KvLink(k.source, transport_from_wire(k.transport), k.transfers, k.bytes)
            for k in wire.links
        ),
        expert_tokens=tuple(wire.expert_tokens),
    )
