"""Answers as events and as one object, byte by byte."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eastwest.answers import Chunk
from eastwest.testing.builders import a_model
from eastwest.types import SampledToken, TopLogprob
from eastwest.v1 import inference_pb2 as inference
from router.http.answers import DONE, Answer
from router.http.bodies import Form
from router.text import Tokenizer, load_tokenizer
from tests.byte_tokenizer import END, ids_of, write_tokenizer

MODEL = replace(a_model(), name="tiny", eos_ids=(END,))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return load_tokenizer(directory)


def an_answer(tokenizer: Tokenizer, form: Form, max_tokens: int = 100) -> Answer:
    return Answer(form, "r1", 1000, MODEL, 3, max_tokens, tokenizer)


def a_chunk(
    text: str, ids: Sequence[int] | None = None, logprobs: Sequence[SampledToken] = ()
) -> Chunk:
    return Chunk(ids_of(text) if ids is None else tuple(ids), text, tuple(logprobs))


def an_ending(text: str = "ab", **fields: Any) -> inference.GenerateComplete:
    known: dict[str, Any] = {
        "request_id": "r1",
        "text": text,
        "finish_reason": inference.FINISH_REASON_STOP,
        "matched_token_id": END,
        "usage": inference.Usage(prompt_tokens=3, completion_tokens=3, cached_tokens=2),
    }
    return inference.GenerateComplete(**{**known, **fields})


def parsed(data: bytes) -> list[Any]:
    """The objects of events; framing is checked on the way."""
    assert data.isascii()
    *events, rest = data.split(b"\n\n")
    assert rest == b""
    assert all(e.startswith(b"data: ") and b"\n" not in e for e in events)
    bodies = [e.removeprefix(b"data: ") for e in events]
    return [None if b == b"[DONE]" else json.loads(b) for b in bodies]


def choice(told: Any) -> Any:
    [only] = told["choices"]
    return only


def test_a_chat_streams_as_deltas_framed_exactly(tokenizer: Tokenizer) -> None:
    answer = an_answer(tokenizer, Form(chat=True, stream=True))
    first = answer.chunk(a_chunk("a\n\u2028"))
    head = (
        b'{"id":"chatcmpl-r1","object":"chat.completion.chunk","created":1000,"model":"tiny",'
        b'"system_fingerprint":"' + MODEL.fingerprint.encode() + b'",'
    )
    assert first == (
        b"data: " + head + b'"choices":[{"index":0,"delta":{"role":"assistant","content":'
        b'"a\\n\\u2028"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    [second] = parsed(answer.chunk(a_chunk("b")))
    assert choice(second)["delta"] == {"content": "b"}
    assert answer.last(an_ending()) == (
        b"data: " + head + b'"choices":[{"index":0,"delta":{},"logprobs":null,'
        b'"finish_reason":"stop","stop_reason":null}]}\n\n' + DONE
    )


def test_a_completion_streams_as_text(tokenizer: Tokenizer) -> None:
    answer = an_answer(tokenizer, Form(chat=False, stream=True))
    [first] = parsed(answer.chunk(a_chunk("a")))
    assert (first["id"], first["object"]) == ("cmpl-r1", "text_completion")
    assert choice(first) == {"index": 0, "text": "a", "logprobs": None, "finish_reason": None}
    last, done = parsed(answer.last(an_ending()))
    assert (choice(last)["text"], choice(last)["finish_reason"], done) == ("", "stop", None)


def test_usage_comes_last_and_only_where_asked_for(tokenizer: Tokenizer) -> None:
    answer = an_answer(tokenizer, Form(chat=True, stream=True, usage=True))
    [first] = parsed(answer.chunk(a_chunk("a")))
    ending, usage, done = parsed(answer.last(an_ending()))
    assert first["usage"] is ending["usage"] is done is None
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_usage_may_come_with_every_event(tokenizer: Tokenizer) -> None:
    answer = an_answer(tokenizer, Form(chat=True, stream=True, usage_so_far=True))
    told = [answer.chunk(a_chunk("a")), answer.chunk(a_chunk("bc")), answer.last(an_ending())]
    counts = [e["usage"]["completion_tokens"] for e in parsed(b"".join(told)) if e is not None]
    assert counts == [1, 3, 3]


def test_tokens_without_text_wait_but_for_the_first(tokenizer: Tokenizer) -> None:
    answer = an_answer(tokenizer, Form(chat=False, stream=True, usage_so_far=True))
    half, other = ids_of("é")
    [first] = parsed(answer.chunk(a_chunk("", [half])))
    assert (choice(first)["text"], first["usage"]["completion_tokens"]) == ("", 1)
    [second] = parsed(answer.chunk(a_chunk("é", [other])))
    assert (choice(second)["text"], second["usage"]["completion_tokens"]) == ("é", 2)
    assert answer.chunk(a_chunk("", [END])) == b""


def test_the_last_token_goes_with_the_ending(tokenizer: Tokenizer) -> None:
    answer = an_answer(tokenizer, Form(chat=True, stream=True), max_tokens=2)
    assert answer.chunk(a_chunk("a"))
    assert answer.chunk(a_chunk("b")) == b""
    ending = an_ending(finish_reason=inference.FINISH_REASON_LENGTH)
    ending.ClearField("matched_token_id")
    last, _ = parsed(answer.last(ending))
    assert choice(last)["delta"] == {"content": "b"}
    assert choice(last)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("matched", "reason"),
    [
        ({"matched_token_id": END}, None),
        ({"matched_token_id": 77}, 77),
        ({"matched_stop_str": "###"}, "###"),
    ],
)
def test_what_stopped_it_is_told(tokenizer: Tokenizer, matched: Any, reason: Any) -> None:
    answer = an_answer(tokenizer, Form(chat=True))
    ending = an_ending()
    ending.ClearField("matched_token_id")
    ending.MergeFrom(inference.GenerateComplete(**matched))
    assert choice(json.loads(answer.whole(ending)))["stop_reason"] == reason


def test_a_whole_answer_is_one_object(tokenizer: Tokenizer) -> None:
    told = json.loads(an_answer(tokenizer, Form(chat=True)).whole(an_ending()))
    assert told["object"] == "chat.completion"
    assert choice(told)["message"] == {"role": "assistant", "content": "ab", "refusal": None}
    assert told["usage"]["total_tokens"] == 6
    assert "timing" not in told
    told = json.loads(an_answer(tokenizer, Form(chat=False)).whole(an_ending()))
    assert choice(told)["text"] == "ab"


def test_timing_comes_where_asked_for(tokenizer: Tokenizer) -> None:
    ending = an_ending(
        timing=inference.RequestTiming(ttft_ns=5, admission_ns=5, e2e_ns=9), decode_worker="d0"
    )
    told = json.loads(an_answer(tokenizer, Form(chat=True, timing=True)).whole(ending))
    assert (told["timing"]["ttft_ns"], told["timing"]["queue_ns"]) == (5, 0)
    assert "second_token_ns" not in told["timing"]
    assert told["timing"]["decode_worker"] == "d0"
    last, _ = parsed(an_answer(tokenizer, Form(chat=True, stream=True, timing=True)).last(ending))
    assert last["timing"] == told["timing"]


def a_logprob(text: str, logprob: float, **top: float) -> SampledToken:
    [token] = ids_of(text)
    return SampledToken(token, logprob, tuple(TopLogprob(ids_of(t)[0], p) for t, p in top.items()))


@pytest.mark.parametrize("request_id", ["r1", "a\0b", 'x"\0"'])
@pytest.mark.parametrize("text", ["b", '\0"\\', "\u2028é"])
@pytest.mark.parametrize("chat", [True, False])
def test_later_events_are_the_first_but_for_their_text(
    tokenizer: Tokenizer, chat: bool, text: str, request_id: str
) -> None:
    form = Form(chat=chat, stream=True, usage=True)
    answer = Answer(form, request_id, 1000, MODEL, 3, 100, tokenizer)
    [first] = parsed(answer.chunk(a_chunk("a", (5,))))
    [told] = parsed(answer.chunk(a_chunk(text, (6,))))
    [again] = parsed(answer.chunk(a_chunk(text, (7,))))
    assert told == again
    expected = {"content": text} if chat else text
    assert choice(told)["delta" if chat else "text"] == expected
    for event in (first, told):
        event["choices"][0].pop("delta" if chat else "text")
    assert told == first


def test_logprobs_of_a_chat(tokenizer: Tokenizer) -> None:
    answer = an_answer(tokenizer, Form(chat=True, stream=True, top_logprobs=1))
    told = answer.chunk(a_chunk("a", logprobs=[a_logprob("a", -math.inf, b=-0.5)]))
    assert choice(parsed(told)[0])["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -9999.0,
                "bytes": [97],
                "top_logprobs": [{"token": "b", "logprob": -0.5, "bytes": [98]}],
            }
        ],
        "refusal": None,
    }


def test_logprobs_of_a_completion_count_offsets_over_events(tokenizer: Tokenizer) -> None:
    answer = an_answer(tokenizer, Form(chat=False, stream=True, top_logprobs=1))
    one = answer.chunk(a_chunk("ab", logprobs=[a_logprob("a", -1.0, b=-0.5), a_logprob("b", -2.0)]))
    two = answer.chunk(a_chunk("c", logprobs=[a_logprob("c", -0.25, c=-0.25)]))
    assert [choice(e)["logprobs"] for e in parsed(one + two)] == [
        {
            "text_offset": [0, 1],
            "tokens": ["a", "b"],
            "token_logprobs": [-1.0, -2.0],
            "top_logprobs": [{"b": -0.5, "a": -1.0}, {"b": -2.0}],
        },
        {
            "text_offset": [2],
            "tokens": ["c"],
            "token_logprobs": [-0.25],
            "top_logprobs": [{"c": -0.25}],
        },
    ]
