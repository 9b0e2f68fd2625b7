"""Bodies of chat and completion calls: OpenAI's JSON to the requests of the gRPC service.

Pure, and only about form. What the values may be is the edge's to say, for gRPC and for this;
fields of features that are not offered are refused unless they leave the feature off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eastwest.types import LOGPROBS_MAX, SEED_MAX
from eastwest.v1 import inference_pb2 as inference
from router.http.fields import (
    UINT32_MAX,
    Fields,
    Refused,
    checked_text,
    is_integer,
    parse_object,
)

# What clients send to be counted, billed or cached by, and what only bears on tools.
IGNORED = (
    "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
)  # fmt: skip
# Features that are not offered, with the values that leave them off.
NEUTRAL: Mapping[str, Sequence[object]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
# What an assistant's message carries when a client sends back the one that it got.
MESSAGE_NEUTRAL: Mapping[str, Sequence[object]] = {
    "refusal": ("",),
    "annotations": ([],),
    "tool_calls": ([],),
    "reasoning": ("",),
    "reasoning_content": ("",),
}
_NUMBERS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_PROMPT = "a string, a list of token ids, or a list that holds one of these"
_CONTENT = 'a string, or a list of {"type": "text", "text": …}'


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is to be written.

    chat: as chat completion. stream: as events. usage: with an event of usage at the end.
    usage_so_far: with usage in each event. timing: with timing at the end. top_logprobs: most
    likely tokens of each position, None for no log-probabilities at all.
    """

    chat: bool
    stream: bool = False
    usage: bool = False
    usage_so_far: bool = False
    timing: bool = False
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """What a body asks for, and in which form."""

    request: inference.GenerateRequest | inference.ChatRequest
    form: Form


def read_body(data: bytes, *, chat: bool, tenant: str) -> Call:
    """The call in a body. Raises `Refused`."""
    fields = Fields(parse_object(data))
    logprobs = _chat_logprobs(fields) if chat else fields.integer("logprobs", 0, LOGPROBS_MAX)
    form = _form(fields, chat, logprobs)
    given: dict[str, Any] = {
        "sampling_params": _sampling(fields, logprobs),
        "stream": form.stream,
        "model": fields.text("model"),
        "request_id": fields.text("request_id"),
        "tenant": tenant,
        "session": _session(fields),
        "priority": fields.integer("priority"),
        "slo_ttft_s": fields.number("slo_ttft_s"),
        "slo_tpot_s": fields.number("slo_tpot_s"),
    }
    request: inference.GenerateRequest | inference.ChatRequest
    if chat:
        request = inference.ChatRequest(messages=_messages(fields), **given)
    else:
        request = inference.GenerateRequest(**_prompt(fields), **given)
    fields.neutral(NEUTRAL)
    fields.ignore(IGNORED)
    fields.finish()
    return Call(request, form)


def _form(fields: Fields, chat: bool, logprobs: int | None) -> Form:
    stream = fields.flag("stream") or False
    asked = fields.take("stream_options")
    if asked is not None and not stream:
        raise Refused("stream_options", "stream_options is given; allowed: where stream is true")
    options = Fields({} if asked is None else asked, "stream_options")
    form = Form(
        chat=chat,
        stream=stream,
        usage=options.flag("include_usage") or False,
        usage_so_far=options.flag("continuous_usage_stats") or False,
        timing=fields.flag("timing") or False,
        top_logprobs=logprobs,
    )
    options.neutral({"include_obfuscation": (False,)})
    options.finish()
    return form


def _sampling(fields: Fields, logprobs: int | None) -> inference.SamplingParams:
    given: dict[str, Any] = {name: fields.number(name) for name in _NUMBERS}
    top_k = fields.integer("top_k")
    given["top_k"] = 0 if top_k == -1 else top_k
    given["seed"] = fields.integer("seed", 0, SEED_MAX)
    given["max_tokens"] = _max_tokens(fields)
    given["min_tokens"] = fields.integer("min_tokens")
    given["ignore_eos"] = fields.flag("ignore_eos")
    given["logprobs"] = logprobs
    return inference.SamplingParams(
        stop=_stop(fields), stop_token_ids=_ids(fields, "stop_token_ids"), **given
    )


def _max_tokens(fields: Fields) -> int | None:
    old, new = fields.integer("max_tokens"), fields.integer("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise Refused(
            "max_tokens",
            f"max_tokens is {old} and max_completion_tokens is {new}; allowed: one, or equal ones",
        )
    return old if new is None else new


def _chat_logprobs(fields: Fields) -> int | None:
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, LOGPROBS_MAX)
    if top is not None and not wanted:
        raise Refused("top_logprobs", "top_logprobs is given; allowed: where logprobs is true")
    return (top or 0) if wanted else None


def _stop(fields: Fields) -> list[str]:
    match fields.take("stop"):
        case None:
            return []
        case [*texts]:
            return [checked_text(text, "stop") for text in texts]
        case text:
            return [checked_text(text, "stop")]


def _ids(fields: Fields, name: str) -> list[int]:
    value = fields.take(name)
    if value is None:
        return []
    if isinstance(value, list) and _are_ids(value):
        return value
    raise fields.refused(name, value, "a list of token ids")


def _are_ids(values: list[Any]) -> bool:
    return all(is_integer(v, 0, UINT32_MAX) for v in values)


def _session(fields: Fields) -> inference.Session | None:
    match fields.take("session"):
        case None:
            return None
        case str() as name:
            return inference.Session(id=checked_text(name, "session"))
        case value:
            inner = Fields(value, "session")
            name = checked_text(inner.required("id", "a string"), "session.id")
            must_exist = inner.flag("must_exist") or False
            inner.finish()
            return inference.Session(id=name, must_exist=must_exist)


def _prompt(fields: Fields) -> dict[str, Any]:
    value = given = fields.required("prompt", _PROMPT)
    match value:
        case [str() | list() as only]:
            value = only
    match value:
        case "" | []:
            raise Refused("prompt", "prompt is empty; allowed: at least one character or token id")
        case str():
            return {"text": checked_text(value, "prompt")}
        case [*ids] if _are_ids(ids):
            return {"tokenized": inference.TokenizedInput(input_ids=ids)}
    raise fields.refused("prompt", given, _PROMPT)


def _messages(fields: Fields) -> list[inference.ChatMessage]:
    allowed = "a list of messages, at least one"
    value = fields.required("messages", allowed)
    if not isinstance(value, list) or not value:
        raise fields.refused("messages", value, allowed)
    return [_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def _message(value: object, where: str) -> inference.ChatMessage:
    fields = Fields(value, where)
    role = checked_text(fields.required("role", "system, user or assistant"), f"{where}.role")
    content = fields.required("content", _CONTENT)
    if isinstance(content, list):
        parts = [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
        content = "\n".join(parts)
    text = checked_text(content, f"{where}.content")
    fields.neutral(MESSAGE_NEUTRAL)
    fields.finish()
    # OpenAI's newer name for what templates know as system.
    return inference.ChatMessage(role="system" if role == "developer" else role, content=text)


def _part(value: object, where: str) -> str:
    fields = Fields(value, where)
    kind = fields.required("type", '"text"')
    if kind != "text":
        raise fields.refused("type", kind, '"text"')
    text = checked_text(fields.required("text", "a string"), f"{where}.text")
    fields.finish()
    return text
