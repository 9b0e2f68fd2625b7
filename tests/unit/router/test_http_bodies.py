"""Bodies of HTTP calls: what becomes of them, and how they are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eastwest.errors import Overloaded, Phase, Unavailable
from eastwest.v1 import inference_pb2 as inference
from router.http.bodies import IGNORED, NEUTRAL, Call, Form, read_body
from router.http.failures import error_event, error_headers, error_object
from router.http.fields import Refused, shown

HELLO = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> Call:
    return read_body(encoded({"messages": HELLO, **fields}), chat=True, tenant="t")


def complete(**fields: Any) -> Call:
    return read_body(encoded({"prompt": "hi", **fields}), chat=False, tenant="t")


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


def refusal(**fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        complete(**fields)
    return caught.value


def test_a_bare_body_leaves_everything_to_the_edge() -> None:
    assert complete() == Call(
        inference.GenerateRequest(
            text="hi", sampling_params=inference.SamplingParams(), stream=False, tenant="t"
        ),
        Form(chat=False),
    )
    messages = [inference.ChatMessage(role="user", content="hi")]
    assert chat() == Call(
        inference.ChatRequest(
            messages=messages,
            sampling_params=inference.SamplingParams(),
            stream=False,
            tenant="t",
        ),
        Form(chat=True),
    )


def test_all_fields_arrive() -> None:
    call = complete(
        model="m", request_id="r", stream=True, priority=3, temperature=1, top_p=0.5, top_k=4,
        min_p=0.25, seed=5, repetition_penalty=1.5, presence_penalty=-1, frequency_penalty=0.5,
        stop=["a", "b"], stop_token_ids=[7, 8], max_tokens=9, min_tokens=2, ignore_eos=True,
        logprobs=3, session={"id": "s", "must_exist": True}, timing=True,
        slo_ttft_s=1, slo_tpot_s=0.05,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )  # fmt: skip
    sampling = inference.SamplingParams(
        temperature=1.0, top_p=0.5, top_k=4, min_p=0.25, seed=5, repetition_penalty=1.5,
        presence_penalty=-1.0, frequency_penalty=0.5, stop=["a", "b"], stop_token_ids=[7, 8],
        max_tokens=9, min_tokens=2, ignore_eos=True, logprobs=3,
    )  # fmt: skip
    assert call.request == inference.GenerateRequest(
        text="hi",
        model="m",
        request_id="r",
        stream=True,
        priority=3,
        slo_ttft_s=1.0,
        slo_tpot_s=0.05,
        tenant="t",
        sampling_params=sampling,
        session=inference.Session(id="s", must_exist=True),
    )
    assert call.form == Form(
        chat=False, stream=True, usage=True, usage_so_far=True, timing=True, top_logprobs=3
    )


@pytest.mark.parametrize("prompt", ["hi", ["hi"]])
def test_a_prompt_is_text_or_a_list_of_one(prompt: Any) -> None:
    assert complete(prompt=prompt).request == complete().request


@pytest.mark.parametrize("prompt", [[5, 6], [[5, 6]]])
def test_a_prompt_is_token_ids_or_a_list_of_one(prompt: Any) -> None:
    request = complete(prompt=prompt).request
    assert isinstance(request, inference.GenerateRequest)
    assert list(request.tokenized.input_ids) == [5, 6]


@pytest.mark.parametrize(
    "prompt",
    [None, "", [], [[]], [""], ["a", "b"], [[1], [2]], [1, "a"], [True], [-1], [2**32], [1.5], 5,
     {}, [None], "\ud800"],
)  # fmt: skip
def test_no_other_prompt_is_taken(prompt: Any) -> None:
    error = refusal(prompt=prompt)
    assert error.param == "prompt"
    assert "allowed: " in error.message


def test_content_is_text_or_parts_of_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    request = chat(messages=messages).request
    assert isinstance(request, inference.ChatRequest)
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "be brief"),
        ("user", "one\ntwo"),
    ]


def test_the_message_that_a_client_got_may_be_sent_back() -> None:
    answer: dict[str, Any] = {
        "role": "assistant", "content": "hello", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    request = chat(messages=[*HELLO, answer, *HELLO]).request
    assert isinstance(request, inference.ChatRequest)
    assert request.messages[1].content == "hello"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        ([5], "messages[0]"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": 1, "content": "hi"}], "messages[0].role"),
        ([*HELLO, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": "\udfff"}], "messages[0].content"),
        ([{"role": "user", "content": ["hi"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "hi", "name": "bob"}], "messages[0].name"),
        ([{"role": "user", "content": "hi", "tool_calls": [1]}], "messages[0].tool_calls"),
    ],
)
def test_what_is_wrong_with_a_message_is_named(messages: Any, param: str) -> None:
    with pytest.raises(Refused) as caught:
        chat(messages=messages)
    assert caught.value.param == param
    assert caught.value.message.startswith((param, f'"{param}"'))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_k", 1.5),
        ("top_k", 2**31),
        ("seed", -1),
        ("seed", 2**63),
        ("max_tokens", "5"),
        ("stream", 1),
        ("ignore_eos", "yes"),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", "\ud800"),
        ("stop_token_ids", 5),
        ("stop_token_ids", [-1]),
        ("model", 5),
        ("logprobs", True),
        ("logprobs", 21),
        ("session", 5),
        ("stream_options", {"include_usage": True}),
        ("timing", "all"),
        ("n", 2),
        ("best_of", 3),
        ("echo", True),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}),
        ("tools", [{}]),
        ("temprature", 0.5),
        ("\ud800", 1),
        ("x" * 1000, 1),
    ],
)
def test_a_field_that_cannot_be_taken_is_named(field: str, value: Any) -> None:
    error = refusal(**{field: value})
    assert error.param == field[:60]
    assert len(error.message) < 400
    error_event(error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"session": {"must_exist": True}}, "session.id"),
        ({"session": {"id": "s", "x": 1}}, "session.x"),
        ({"stream": True, "stream_options": 5}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ],
)
def test_fields_of_fields_are_named_with_their_path(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_what_changes_nothing_is_taken() -> None:
    harmless = dict.fromkeys(IGNORED, "x") | {name: values[0] for name, values in NEUTRAL.items()}
    assert complete(**harmless) == complete()
    assert complete(whatever=None, stop=None, logprobs=None) == complete()


def test_top_k_of_minus_one_is_off() -> None:
    assert complete(top_k=-1).request.sampling_params.top_k == 0


def test_integers_may_be_written_with_a_point() -> None:
    assert complete(max_tokens=5.0).request.sampling_params.max_tokens == 5


def test_both_names_of_max_tokens_are_one() -> None:
    assert complete(max_completion_tokens=5).request == complete(max_tokens=5).request
    both = complete(max_completion_tokens=5, max_tokens=5)
    assert both.request.sampling_params.max_tokens == 5
    assert refusal(max_completion_tokens=5, max_tokens=6).param == "max_tokens"


def test_logprobs_of_chats_are_a_flag_and_a_number() -> None:
    assert chat(logprobs=True).form.top_logprobs == 0
    assert chat(logprobs=True, top_logprobs=2).request.sampling_params.logprobs == 2
    assert not chat(logprobs=False).request.sampling_params.HasField("logprobs")
    with pytest.raises(Refused, match="allowed: where logprobs is true"):
        chat(top_logprobs=2)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff", b'{"prompt": NaN}', b"[" * 100_000,
     b'{"prompt":' + b"[" * 100_000, b'{"seed":' + b"1" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_body(data, chat=False, tenant="")
    assert caught.value.param is None
    assert len(caught.value.message) < 300


def test_long_values_are_quoted_short() -> None:
    assert len(shown("x" * 10_000)) < 100
    assert len(shown(10**4000)) < 100
    assert shown({"a": 1}) == "an object"


def test_an_error_has_the_shape_that_clients_know() -> None:
    error = Unavailable("gone; allowed: again", phase=Phase.DECODE, retry_after_s=0.25)
    assert error_object(error) == {
        "error": {
            "message": "gone; allowed: again",
            "type": "server_error",
            "param": None,
            "code": "unavailable",
            "retriable": True,
            "phase": "decode",
        }
    }
    assert dict(error_headers(error)) == {
        "content-type": "application/json",
        "x-should-retry": "true",
        "retry-after": "1",
        "retry-after-ms": "250",
    }
    assert error_object(Overloaded("full"))["error"]["type"] == "rate_limit_error"
    assert "retry-after" not in dict(error_headers(Overloaded("full")))
