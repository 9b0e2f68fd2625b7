"""What clients send, and what they make of answers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import eastwest
from eastwest import calls
from eastwest.answers import Chunk, Completion
from eastwest.errors import InternalError, InvalidArgument
from eastwest.timing import SecondTokenParts, Timing, TtftParts
from eastwest.types import FinishReason, SampledToken, SamplingParams, TopLogprob, Usage
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import logprobs_to_wire, sampling_from_wire, timing_to_wire, usage_to_wire


def test_sampling_by_name_wins_over_the_parameters_given() -> None:
    wire = calls.resolve_sampling(SamplingParams(top_k=3, seed=1), {"seed": 2, "stop": "end"})
    assert sampling_from_wire(wire) == SamplingParams(top_k=3, seed=2, stop=("end",))


@pytest.mark.parametrize(
    "options", [{"temprature": 1}, {"max_tokens": "many"}, {"seed": 2**70}, {"stop": (1,)}]
)
def test_sampling_that_cannot_be_sent_is_an_invalid_argument(options: Any) -> None:
    with pytest.raises(InvalidArgument, match="sampling parameters cannot be sent"):
        calls.resolve_sampling(None, options)


def test_prompts_are_text_or_tokens() -> None:
    assert calls.prompt_to_wire("hi").text == "hi"
    assert list(calls.prompt_to_wire((1, 2)).tokenized.input_ids) == [1, 2]


@pytest.mark.parametrize("prompt", ["\ud800", [-1], [2**40], ["a"], 5])
def test_a_prompt_that_cannot_be_sent_is_an_invalid_argument(prompt: Any) -> None:
    with pytest.raises(InvalidArgument, match="the prompt is neither"):
        calls.prompt_to_wire(prompt)


@pytest.mark.parametrize(
    "message", [{}, {"role": "user"}, {"role": "user", "content": "a", "name": "b"}]
)
def test_a_message_has_role_and_content_only(message: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="allowed: role, content"):
        calls.messages_to_wire([message])


def test_must_exist_without_a_session_is_an_invalid_argument() -> None:
    with pytest.raises(InvalidArgument, match="must_exist"):
        calls.Addressing("", None, True, "", "", 0).fill(inference.GenerateRequest())


def test_a_priority_that_is_no_number_is_an_invalid_argument() -> None:
    with pytest.raises(InvalidArgument, match="priority"):
        calls.Addressing("", None, False, "", "", 1 << 40).fill(inference.GenerateRequest())


def test_targets_are_sent_where_they_are_given() -> None:
    given, none = inference.GenerateRequest(), inference.ChatRequest()
    calls.Addressing("", None, False, "", "", 0, slo_tpot_s=0.05).fill(given)
    calls.Addressing("", None, False, "", "", 0).fill(none)
    assert given == inference.GenerateRequest(slo_tpot_s=0.05)
    assert none == inference.ChatRequest()


def test_a_completion_comes_back_whole() -> None:
    timing = Timing(TtftParts(1, 2, 3, 4, 5), SecondTokenParts(6, 7, 8, 9, 10), 100)
    usage = Usage(10, 2, 4, 3, 6, 1, 12)
    tokens = (SampledToken(7, -0.5, (TopLogprob(8, -0.25),)), SampledToken(9, -1.0))
    wire = inference.GenerateComplete(
        request_id="r",
        output_ids=[7, 9],
        text="hi",
        finish_reason=inference.FINISH_REASON_STOP,
        matched_token_id=9,
        usage=usage_to_wire(usage),
        timing=timing_to_wire(timing),
        prefill_worker="p",
        decode_worker="d",
        logprobs=logprobs_to_wire(tokens),
        transfer_bytes=11,
        transfer_ns=12,
    )
    assert calls.read_response(inference.GenerateResponse(complete=wire)) == Completion(
        request_id="r",
        text="hi",
        token_ids=(7, 9),
        finish_reason=FinishReason.STOP,
        matched_stop=9,
        usage=usage,
        timing=timing,
        prefill_worker="p",
        decode_worker="d",
        transfer_bytes=11,
        transfer_ns=12,
        logprobs=tokens,
    )


def test_a_chunk_comes_back_whole() -> None:
    wire = inference.GenerateStreamChunk(token_ids=[1, 2], text="ab")
    assert calls.read_response(inference.GenerateResponse(chunk=wire)) == Chunk((1, 2), "ab")


@pytest.mark.parametrize(
    "wire",
    [
        inference.GenerateResponse(),
        inference.GenerateResponse(complete=inference.GenerateComplete()),
    ],
)
def test_an_answer_that_means_nothing_is_a_defect_of_the_server(
    wire: inference.GenerateResponse,
) -> None:
    with pytest.raises(InternalError):
        calls.read_response(wire)


def test_importing_the_package_loads_no_grpc_until_a_client_is_asked_for() -> None:
    check = (
        "import sys, eastwest; assert 'grpc' not in sys.modules; "
        "eastwest.Client; assert 'grpc' in sys.modules; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_package_exports_what_it_says() -> None:
    assert all(hasattr(eastwest, name) for name in eastwest.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        eastwest.nothing  # noqa: B018
