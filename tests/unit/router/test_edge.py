"""What comes from outside, at the edge."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from eastwest.blocks import cache_salt
from eastwest.clock import DURATION_MAX_S, ns
from eastwest.config import LimitsConfig
from eastwest.errors import DeadlineExceeded, InvalidArgument, NotFound, Phase, TooLarge
from eastwest.testing.builders import a_model
from eastwest.types import SEED_MAX, SamplingParams, Slo
from eastwest.v1 import inference_pb2 as inference
from router import edge
from router.edge import Ask, ChatMessage, Malformed, SessionRef

MODEL = replace(a_model(), name="tiny", vocab_size=100, context_tokens=1000)
LIMITS = LimitsConfig(
    prompt_bytes=1000,
    messages=3,
    stop_strings=2,
    stop_bytes=10,
    stop_tokens=4,
    default_max_tokens=256,
)
SLO = Slo(2.0, 0.1)
Generate = inference.GenerateRequest
Chat = inference.ChatRequest
Sampling = inference.SamplingParams


def read(request: inference.GenerateRequest) -> Ask:
    return edge.read_generate(request, MODEL, LIMITS, SLO, random.Random(1))


def read_chat(request: inference.ChatRequest) -> Ask:
    return edge.read_chat(request, MODEL, LIMITS, SLO, random.Random(1))


def tokenized(*ids: int) -> inference.TokenizedInput:
    return inference.TokenizedInput(input_ids=ids)


def test_a_bare_request_takes_the_documented_defaults() -> None:
    ask = read(Generate(text="hi"))
    assert (ask.prompt, ask.messages, ask.tenant, ask.session) == ("hi", (), "", None)
    assert ask.stream
    assert ask.request_id
    assert ask.sampling == SamplingParams(seed=ask.sampling.seed)


def test_all_fields_arrive() -> None:
    ask = read(
        Generate(
            request_id="r",
            tokenized=tokenized(5, 99),
            sampling_params=Sampling(temperature=0.5, seed=3, stop=["."], max_tokens=7),
            stream=False,
            model="tiny",
            tenant="t",
            session=inference.Session(id="s", must_exist=True),
            priority=3,
            slo_ttft_s=0.5,
        )
    )
    assert ask == Ask(
        request_id="r",
        tenant="t",
        session=SessionRef("s", must_exist=True),
        sampling=SamplingParams(temperature=0.5, seed=3, stop=(".",), max_tokens=7),
        stream=False,
        prompt=(5, 99),
        messages=(),
        slo=Slo(0.5, 0.1),
        priority=3,
    )


def test_a_chat_has_messages_and_no_prompt() -> None:
    messages = [inference.ChatMessage(role="user", content="hi")]
    ask = read_chat(Chat(messages=messages, tenant="t"))
    assert (ask.prompt, ask.messages, ask.tenant) == ("", (ChatMessage("user", "hi"),), "t")


def test_targets_are_the_routers_where_the_request_names_none() -> None:
    messages = [inference.ChatMessage(role="user", content="hi")]
    assert read(Generate(text="hi")).slo == SLO
    assert read_chat(Chat(messages=messages, slo_tpot_s=0.03)).slo == Slo(2.0, 0.03)
    edges = Generate(text="hi", slo_ttft_s=1e-6, slo_tpot_s=1e9)
    assert read(edges).slo == Slo(1e-6, 1e9)


def test_a_seed_is_drawn_where_none_is_given_and_kept_where_it_is() -> None:
    rng = random.Random(1)
    drawn = {
        edge.read_generate(Generate(text="hi"), MODEL, LIMITS, SLO, rng).sampling.seed
        for _ in range(9)
    }
    assert len(drawn) == 9
    assert all(seed is not None and 0 <= seed <= SEED_MAX for seed in drawn)
    assert read(Generate(text="hi", sampling_params=Sampling(seed=0))).sampling.seed == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Generate(), "no input; allowed: text or tokenized"),
        (Generate(text=""), "text is empty"),
        (Generate(tokenized=tokenized()), "input_ids is empty"),
        (Generate(tokenized=tokenized(5, 100)), "input_ids holds 100; allowed: below .* 100"),
        (Generate(text="hi", request_id="x" * 129), "request_id has 129 bytes; .* 128"),
        (Generate(text="hi", request_id="é" * 65), "request_id has 130 bytes; .* 128"),
        (Generate(text="hi", request_id="a\nb"), "printable"),
        (Generate(text="hi", tenant="x" * 129), "tenant has 129 bytes"),
        (Generate(text="hi", tenant="\x00"), "printable"),
        (Generate(text="hi", priority=11), "priority is 11; allowed: -10 to 10"),
        (Generate(text="hi", slo_ttft_s=0.0), r"slo_ttft_s is 0\.0; allowed: 1e-06 to 1e\+09"),
        (Generate(text="hi", slo_ttft_s=math.nan), "slo_ttft_s is nan; allowed"),
        (Generate(text="hi", slo_tpot_s=-0.1), "slo_tpot_s is -0.1; allowed"),
        (Generate(text="hi", slo_tpot_s=math.inf), "slo_tpot_s is inf; allowed"),
        (Generate(text="hi", session=inference.Session()), r"session\.id is empty"),
        (Generate(text="hi", session=inference.Session(id="x" * 257)), r"session\.id has 257"),
        (Generate(text="hi", session=inference.Session(id="\t")), "printable"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(
    request_: inference.GenerateRequest, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        read(request_)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(temperature=-1), "temperature is -1"),
        (Sampling(temperature=float("nan")), "temperature is nan"),
        (Sampling(temperature=float("inf")), "temperature is inf"),
        (Sampling(top_p=0), "top_p is 0"),
        (Sampling(top_k=-1), "top_k is -1"),
        (Sampling(seed=-1), "seed is -1"),
        (Sampling(max_tokens=0), "max_tokens is 0"),
        (Sampling(max_tokens=2, min_tokens=3), "min_tokens is 3"),
        (Sampling(logprobs=21), "logprobs is 21"),
        (Sampling(stop=[""]), "stop holds an empty string"),
        (Sampling(stop_token_ids=[1] * 5), "stop_token_ids has 5 entries; allowed: at most 4"),
        (Sampling(stop=["a", "b", "c"]), "stop has 3 strings; allowed: at most 2"),
        (Sampling(stop=["x" * 11]), "a stop string has 11 bytes; allowed: at most 10"),
        (Sampling(stop_token_ids=[100]), "stop_token_ids holds 100"),
    ],
)
def test_sampling_out_of_range_is_refused(sampling: inference.SamplingParams, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        read(Generate(text="hi", sampling_params=sampling))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([("tool", "hi")], "role is 'tool'; allowed: system, user, assistant"),
        ([("", "hi")], "role is ''"),
    ],
)
def test_a_chat_that_cannot_be_meant_is_refused(
    messages: list[tuple[str, str]], message: str
) -> None:
    turns = [inference.ChatMessage(role=role, content=content) for role, content in messages]
    with pytest.raises(InvalidArgument, match=message):
        read_chat(Chat(messages=turns))


def test_sizes_are_limited_in_bytes_of_all_text_together() -> None:
    with pytest.raises(TooLarge, match="1002 bytes; allowed: at most 1000"):
        read(Generate(text="é" * 501))
    big = inference.TokenizedInput(input_ids=[1], original_text="x" * 1001)
    with pytest.raises(TooLarge, match="original_text"):
        read(Generate(tokenized=big))
    half = inference.ChatMessage(role="user", content="x" * 501)
    with pytest.raises(TooLarge, match="1002 bytes"):
        read_chat(Chat(messages=[half, half]))


def test_another_model_is_not_found_and_the_served_one_is_named() -> None:
    with pytest.raises(NotFound, match=r"model 'x' is not served here; .* 'tiny'"):
        read(Generate(text="a", model="x"))
    with pytest.raises(NotFound, match=r"model 'x' is not served here; .* 'tiny'"):
        read_chat(Chat(model="x"))


# Parsing.


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"\x12\x02hi\xc2\x3e\x01x", "GenerateRequest has field number 1000"),
        (b"\x12\x02hi\x22\x04\xc2\x3e\x01x", "GenerateRequest.sampling_params has field"),
        (b"\x1a\x04\xc2\x3e\x01x", "GenerateRequest.tokenized has field number 1000"),
    ],
)
def test_unknown_fields_are_refused_at_any_depth(data: bytes, where: str) -> None:
    malformed = edge.parse(Generate, data)
    assert isinstance(malformed, Malformed)
    assert where in malformed.error.message


def test_unknown_fields_are_refused_inside_repeated_messages() -> None:
    good = inference.ChatMessage(role="user", content="a").SerializeToString()
    bad = good + b"\xc2\x3e\x01x"
    data = b"".join(b"\x12" + bytes([len(m)]) + m for m in (good, bad))
    malformed = edge.parse(Chat, data)
    assert isinstance(malformed, Malformed)
    assert "ChatRequest.messages has field number 1000" in malformed.error.message


@pytest.mark.parametrize("data", [b"\x12\x02\xff\xfe", b"\xff", b"\x12\x7fshort"])
def test_bytes_that_are_no_message_are_returned_as_malformed(data: bytes) -> None:
    malformed = edge.parse(Generate, data)
    assert isinstance(malformed, Malformed)
    assert "not a valid message" in malformed.error.message


def test_a_message_without_surprises_is_parsed() -> None:
    request = Generate(text="hi", sampling_params=Sampling(top_k=3))
    assert edge.parse(Generate, request.SerializeToString()) == request


# Lengths and deadlines.


@pytest.mark.parametrize(
    ("prompt_tokens", "sampling", "expected"),
    [
        (10, SamplingParams(), 256),
        (900, SamplingParams(), 100),
        (10, SamplingParams(max_tokens=990), 990),
        (10, SamplingParams(min_tokens=300), 300),
        (999, SamplingParams(), 1),
    ],
)
def test_max_tokens_is_what_was_asked_for_or_the_default_within_the_context(
    prompt_tokens: int, sampling: SamplingParams, expected: int
) -> None:
    assert edge.resolve_max_tokens(sampling, prompt_tokens, MODEL, LIMITS) == expected


@pytest.mark.parametrize(
    ("prompt_tokens", "sampling", "message"),
    [
        (0, SamplingParams(), "no tokens"),
        (1000, SamplingParams(), "1000 tokens; allowed: below the context of 1000"),
        (10, SamplingParams(max_tokens=991), "10 tokens .* 991; .* context of 1000"),
        (10, SamplingParams(min_tokens=991), "10 tokens .* 991; .* context of 1000"),
    ],
)
def test_what_cannot_fit_the_context_is_refused_with_the_numbers(
    prompt_tokens: int, sampling: SamplingParams, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        edge.resolve_max_tokens(sampling, prompt_tokens, MODEL, LIMITS)


def test_the_deadline_is_the_callers_less_the_time_to_answer() -> None:
    assert edge.deadline_ns(5, None, LIMITS) == 5 + ns(LIMITS.default_timeout_s)
    assert edge.deadline_ns(5, 10.0, LIMITS) == 5 + ns(10.0 - edge.ANSWER_S)
    assert edge.deadline_ns(5, 0.1, LIMITS) == 5 + ns(0.09)
    for passed in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded) as caught:
            edge.deadline_ns(5, passed, LIMITS)
        assert caught.value.phase is Phase.ADMISSION


def test_tenants_never_share_a_salt() -> None:
    salts = {cache_salt(tenant) for tenant in ("", "a", "b", "ab")}
    assert len(salts) == 4
    assert cache_salt("a") == cache_salt("a")


def test_more_messages_than_allowed_are_too_large() -> None:
    turn = inference.ChatMessage(role="user", content="hi")
    assert len(read_chat(Chat(messages=[turn] * 3)).messages) == 3
    with pytest.raises(TooLarge, match="messages has 4 entries; allowed: at most 3"):
        read_chat(Chat(messages=[turn] * 4))


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=6), Sampling(min_tokens=6)])
def test_more_tokens_than_the_deployment_gives_are_refused(sampling: Sampling) -> None:
    limits = LimitsConfig(max_tokens=5)
    request = Generate(text="hi", sampling_params=sampling)
    with pytest.raises(InvalidArgument, match="is 6; allowed: at most 5"):
        edge.read_generate(request, MODEL, limits, SLO, random.Random(1))


def test_prompt_and_output_keep_to_the_limits_of_the_deployment() -> None:
    limits = LimitsConfig(prompt_tokens=10, max_tokens=5)
    assert edge.resolve_max_tokens(SamplingParams(), 10, MODEL, limits) == 5
    with pytest.raises(TooLarge, match="the prompt has 11 tokens; allowed: at most 10"):
        edge.resolve_max_tokens(SamplingParams(), 11, MODEL, limits)


def test_a_deadline_without_end_is_a_long_one() -> None:
    deadline_ns = edge.deadline_ns(5, 1e300, LIMITS)
    assert deadline_ns == edge.deadline_ns(5, DURATION_MAX_S, LIMITS)
