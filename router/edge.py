"""Everything that comes from outside, validated once and turned into values.

Pure: no network, no clock. Whatever passes here is safe for every room behind; whatever does not
raises `InvalidArgument`, `TooLarge` or `NotFound` with one line that says what is allowed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from eastwest.clock import DURATION_MAX_S, ns
from eastwest.config import LimitsConfig
from eastwest.errors import DeadlineExceeded, InvalidArgument, NotFound, Phase, TooLarge
from eastwest.messages import ModelInfo
from eastwest.types import SEED_MAX, SamplingParams, Slo
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import sampling_from_wire

REQUEST_ID_BYTES = 128
TENANT_BYTES = 128
SESSION_ID_BYTES = 256
PRIORITY_MAX = 10
SLO_MIN_S = 1e-6
ROLES = ("system", "user", "assistant")
# An answer needs time to reach the caller: a request ends this long before the caller gives up,
# so that the status that says in which phase it was still arrives.
ANSWER_S = 0.1


@dataclass(frozen=True, slots=True)
class SessionRef:
    """The conversation that a request continues or begins."""

    session_id: str
    must_exist: bool


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as its client meant it: `sampling` valid, with its seed; text not tokenised.

    messages: of a Chat call; empty for Generate. prompt: of a Generate call; empty for Chat.
    priority: more is more urgent within the tenant. slo: its own targets, and the router's.
    """

    request_id: str
    tenant: str
    session: SessionRef | None
    sampling: SamplingParams
    stream: bool
    prompt: str | tuple[int, ...]
    messages: tuple[ChatMessage, ...]
    slo: Slo
    priority: int = 0


MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class Malformed:
    """What could not be read as a message, and why."""

    error: InvalidArgument


def parse(kind: type[MessageT], data: bytes) -> MessageT | Malformed:
    """The message in `data`, without fields that this version does not know.

    Runs as a gRPC deserializer, which cannot end a call: a defect is returned, not raised.
    """
    try:
        message = kind.FromString(data)
        refuse_unknown(message, kind.DESCRIPTOR.name)
    except DecodeError as error:
        return Malformed(InvalidArgument(f"not a valid message: {error}"))
    except InvalidArgument as error:
        return Malformed(error)
    return message


def refuse_unknown(message: Message, where: str) -> None:
    """Raise `InvalidArgument` where `message`, or one inside it, has fields unknown here."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise InvalidArgument(
            f"{where} has field number {unknown[0].field_number}, which this version does not know"
        )
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for child in [value] if isinstance(value, Message) else value:
            refuse_unknown(child, f"{where}.{field.name}")


def read(
    request: inference.GenerateRequest | inference.ChatRequest,
    model: ModelInfo,
    limits: LimitsConfig,
    slo: Slo,
    rng: random.Random,
) -> Ask:
    """What a call of either kind asks for. slo: targets of those that name none."""
    if isinstance(request, inference.ChatRequest):
        return read_chat(request, model, limits, slo, rng)
    return read_generate(request, model, limits, slo, rng)


def read_generate(
    request: inference.GenerateRequest,
    model: ModelInfo,
    limits: LimitsConfig,
    slo: Slo,
    rng: random.Random,
) -> Ask:
    """What a Generate call asks for."""
    ask = _read_common(request, model, limits, slo, rng)
    return replace(ask, prompt=_prompt(request, model, limits))


def read_chat(
    request: inference.ChatRequest,
    model: ModelInfo,
    limits: LimitsConfig,
    slo: Slo,
    rng: random.Random,
) -> Ask:
    """What a Chat call asks for."""
    ask = _read_common(request, model, limits, slo, rng)
    return replace(ask, messages=_messages(request.messages, limits))


def _read_common(
    request: inference.GenerateRequest | inference.ChatRequest,
    model: ModelInfo,
    limits: LimitsConfig,
    slo: Slo,
    rng: random.Random,
) -> Ask:
    """All but the input."""
    _check_model(request.model, model)
    return Ask(
        request_id=_request_id(request.request_id, rng),
        tenant=read_name("tenant", request.tenant, TENANT_BYTES),
        session=_session(request.session) if request.HasField("session") else None,
        sampling=_sampling(request.sampling_params, model, limits, rng),
        stream=request.stream if request.HasField("stream") else True,
        prompt="",
        messages=(),
        slo=_slo(request, slo),
        priority=_priority(request.priority),
    )


def read_explain(request: inference.ExplainRequest) -> tuple[str, str]:
    """The request that is asked about: whose it is, and its name."""
    name = read_name("request_id", request.request_id, REQUEST_ID_BYTES)
    if not name:
        raise InvalidArgument(f"request_id is empty; allowed: 1 to {REQUEST_ID_BYTES} bytes")
    return read_name("tenant", request.tenant, TENANT_BYTES), name


def _priority(priority: int) -> int:
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        raise InvalidArgument(f"priority is {priority}; allowed: -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return priority


def _slo(request: inference.GenerateRequest | inference.ChatRequest, slo: Slo) -> Slo:
    for name in ("slo_ttft_s", "slo_tpot_s"):
        if request.HasField(name):
            target_s = getattr(request, name)
            if not SLO_MIN_S <= target_s <= DURATION_MAX_S:
                raise InvalidArgument(
                    f"{name} is {target_s}; allowed: {SLO_MIN_S:g} to {DURATION_MAX_S:g}"
                )
            slo = replace(slo, **{name.removeprefix("slo_"): target_s})
    return slo


def _check_model(name: str, model: ModelInfo) -> None:
    if name not in ("", model.name):
        raise NotFound(f"model {name!r} is not served here; this deployment serves {model.name!r}")


def _prompt(
    request: inference.GenerateRequest, model: ModelInfo, limits: LimitsConfig
) -> str | tuple[int, ...]:
    match request.WhichOneof("input"):
        case "text":
            if not request.text:
                raise InvalidArgument("text is empty; allowed: at least one character")
            _check_bytes("the prompt", [request.text], limits)
            return request.text
        case "tokenized":
            ids = tuple(request.tokenized.input_ids)
            if not ids:
                raise InvalidArgument("input_ids is empty; allowed: at least one token id")
            _check_bytes("original_text", [request.tokenized.original_text], limits)
            _check_ids("input_ids", ids, model)
            return ids
        case _:
            raise InvalidArgument("the request has no input; allowed: text or tokenized")


def _messages(
    messages: Iterable[inference.ChatMessage], limits: LimitsConfig
) -> tuple[ChatMessage, ...]:
    turns = tuple(ChatMessage(m.role, m.content) for m in messages)
    if not turns:
        raise InvalidArgument("messages is empty; allowed: at least one message")
    if len(turns) > limits.messages:
        raise TooLarge(f"messages has {len(turns)} entries; allowed: at most {limits.messages}")
    for turn in turns:
        if turn.role not in ROLES:
            raise InvalidArgument(f"role is {turn.role!r}; allowed: {', '.join(ROLES)}")
    _check_bytes("the conversation", (turn.content for turn in turns), limits)
    return turns


def _check_bytes(what: str, texts: Iterable[str], limits: LimitsConfig) -> None:
    size = sum(len(text.encode()) for text in texts)
    if size > limits.prompt_bytes:
        raise TooLarge(f"{what} has {size} bytes; allowed: at most {limits.prompt_bytes}")


def _check_ids(what: str, ids: tuple[int, ...], model: ModelInfo) -> None:
    if ids and max(ids) >= model.vocab_size:
        raise InvalidArgument(
            f"{what} holds {max(ids)}; allowed: below the vocabulary size, {model.vocab_size}"
        )


def read_name(what: str, value: str, bytes_max: int) -> str:
    size = len(value.encode())
    if size > bytes_max:
        raise InvalidArgument(f"{what} has {size} bytes; allowed: at most {bytes_max}")
    if not value.isprintable():
        raise InvalidArgument(f"{what} is {value!r}; allowed: printable characters")
    return value


def _request_id(value: str, rng: random.Random) -> str:
    return read_name("request_id", value, REQUEST_ID_BYTES) or f"{rng.getrandbits(64):016x}"


def _session(session: inference.Session) -> SessionRef:
    if not session.id:
        raise InvalidArgument(f"session.id is empty; allowed: 1 to {SESSION_ID_BYTES} bytes")
    return SessionRef(read_name("session.id", session.id, SESSION_ID_BYTES), session.must_exist)


def _sampling(
    wire: inference.SamplingParams, model: ModelInfo, limits: LimitsConfig, rng: random.Random
) -> SamplingParams:
    sampling = sampling_from_wire(wire)
    sampling.validate()
    if len(sampling.stop) > limits.stop_strings:
        raise InvalidArgument(
            f"stop has {len(sampling.stop)} strings; allowed: at most {limits.stop_strings}"
        )
    longest = max((len(stop.encode()) for stop in sampling.stop), default=0)
    if longest > limits.stop_bytes:
        raise InvalidArgument(
            f"a stop string has {longest} bytes; allowed: at most {limits.stop_bytes}"
        )
    if len(sampling.stop_token_ids) > limits.stop_tokens:
        raise InvalidArgument(
            f"stop_token_ids has {len(sampling.stop_token_ids)} entries; allowed: at most "
            f"{limits.stop_tokens}"
        )
    _check_ids("stop_token_ids", sampling.stop_token_ids, model)
    asked = max(sampling.max_tokens or 0, sampling.min_tokens)
    if limits.max_tokens is not None and asked > limits.max_tokens:
        raise InvalidArgument(
            f"max_tokens or min_tokens is {asked}; allowed: at most {limits.max_tokens}"
        )
    seed = rng.randint(0, SEED_MAX) if sampling.seed is None else sampling.seed
    return replace(sampling, seed=seed)


def resolve_max_tokens(
    sampling: SamplingParams, prompt_tokens: int, model: ModelInfo, limits: LimitsConfig
) -> int:
    """How many tokens may be generated; prompt and they fit the context together."""
    left = model.context_tokens - prompt_tokens
    if prompt_tokens < 1:
        raise InvalidArgument("the prompt has no tokens; allowed: at least one")
    if limits.prompt_tokens is not None and prompt_tokens > limits.prompt_tokens:
        raise TooLarge(
            f"the prompt has {prompt_tokens} tokens; allowed: at most {limits.prompt_tokens}"
        )
    if left < 1:
        raise InvalidArgument(
            f"the prompt has {prompt_tokens} tokens; allowed: below the context of "
            f"{model.context_tokens} tokens"
        )
    if sampling.min_tokens > left or (sampling.max_tokens or 0) > left:
        raise InvalidArgument(
            f"the prompt has {prompt_tokens} tokens and max_tokens or min_tokens is "
            f"{max(sampling.min_tokens, sampling.max_tokens or 0)}; allowed: together at most the "
            f"context of {model.context_tokens} tokens"
        )
    if sampling.max_tokens is not None:
        return sampling.max_tokens
    most = left if limits.max_tokens is None else min(left, limits.max_tokens)
    return min(max(limits.default_max_tokens, sampling.min_tokens), most)


def deadline_ns(accepted_ns: int, remaining_s: float | None, limits: LimitsConfig) -> int:
    """The request's one deadline; `remaining_s` is what the caller's gRPC deadline leaves."""
    if remaining_s is None:
        return accepted_ns + ns(limits.default_timeout_s)
    if remaining_s <= 0:
        raise DeadlineExceeded("the deadline passed before admission", phase=Phase.ADMISSION)
    remaining_s = min(remaining_s, DURATION_MAX_S)
    return accepted_ns + ns(remaining_s - min(ANSWER_S, remaining_s / 10))
