"""The router's public port against clients that send anything; see `grpc_fuzz`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.v1 import inference_pb2, sessions_pb2
from tests.property.absurd import Known, absurd, mangled, noise
from tests.property.grpc_fuzz import RawStream, Site, a_site, profiles, streamed, unary
from tests.rig import a_rig

INFERENCE = "/eastwest.v1.Inference/"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SESSIONS = ("s", "t")
GENERATE = inference_pb2.GenerateRequest(
    text="hello", tenant="hostile", sampling_params={"max_tokens": 4}, session={"id": "s"}
)
CHAT = inference_pb2.ChatRequest(
    messages=[{"role": "user", "content": "hi"}],
    tenant="hostile",
    sampling_params={"max_tokens": 4, "stop": ["x", "yz"], "stop_token_ids": [7], "logprobs": 2},
    session={"id": "t"},
)
STREAMING = {"Generate": GENERATE, "Chat": CHAT}
UNARY = {
    "Abort": inference_pb2.AbortRequest(request_id="r", tenant="hostile"),
    "GetModelInfo": inference_pb2.GetModelInfoRequest(),
    "GetServerInfo": inference_pb2.GetServerInfoRequest(),
    "GetLoads": inference_pb2.GetLoadsRequest(),
    "NoSuchMethod": inference_pb2.GetLoadsRequest(),
}
OURS = {"tenant": "hostile", "id": "s"}
TALKING = {
    "List": sessions_pb2.ListSessionsRequest(tenant="hostile", limit=2),
    "Get": sessions_pb2.GetSessionRequest(**OURS),
    "Fork": sessions_pb2.ForkSessionRequest(**OURS, new_id="t"),
    "Delete": sessions_pb2.DeleteSessionRequest(tenant="hostile", id="s", keep_kv=True),
    "Export": sessions_pb2.ExportSessionRequest(**OURS),
    "Import": sessions_pb2.ImportSessionRequest(**OURS, data=b"EWSN"),
}
HEALTH = health_pb2.HealthCheckRequest(service="eastwest.v1.Inference")
REFLECTION = reflection_pb2.ServerReflectionRequest(file_containing_symbol="eastwest.v1.Inference")
KNOWN: Known = {
    "request_id": st.sampled_from(["q", "r"]),
    "tenant": st.just("hostile"),
    "model": st.sampled_from(["", "simulated"]),
    "role": st.sampled_from(["user", "assistant", "system"]),
    "id": st.sampled_from(SESSIONS),
    "new_id": st.sampled_from(SESSIONS),
    "max_tokens": st.integers(1, 40),
    "min_tokens": st.integers(0, 5),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.1, 1),
    "min_p": st.just(0.1),
    "top_k": st.integers(0, 600),
    "seed": st.integers(0, 9),
    "repetition_penalty": st.just(1.1),
    "presence_penalty": st.just(0.5),
    "frequency_penalty": st.just(-0.5),
    "logprobs": st.integers(0, 20),
    "priority": st.integers(-10, 10),
    "slo_ttft_s": st.floats(1e-6, 1e9),
    "slo_tpot_s": st.floats(1e-6, 1e9),
    "stop": st.text(min_size=1, max_size=4),
    "input_ids": st.integers(0, 511),
    "stop_token_ids": st.integers(0, 511),
    "content": st.text(max_size=30),
    "text": st.text(min_size=1, max_size=30),
}


@dataclass(frozen=True, slots=True)
class Call:
    """reads: responses that are read before the client is gone; None: all."""

    method: str
    kind: str
    request: Message | bytes
    reads: int | None

    @property
    def data(self) -> bytes:
        request = self.request
        return request if isinstance(request, bytes) else request.SerializeToString()


@st.composite
def calls(draw: st.DrawFn) -> Call:
    often = [*STREAMING] * 3
    method = draw(st.sampled_from([*often, *UNARY, *TALKING, "Check", "Watch"]))
    match method:
        case "Generate" | "Chat":
            kind, path, good = "stream", INFERENCE + method, STREAMING[method]
        case "Watch" | "Check":
            kind = "stream" if method == "Watch" else "unary"
            path, good = f"/grpc.health.v1.Health/{method}", HEALTH
        case _ if method in TALKING:
            kind, path, good = "unary", f"/eastwest.v1.Sessions/{method}", TALKING[method]
        case _:
            kind, path, good = "unary", INFERENCE + method, UNARY[method]
    request: Message | bytes
    match draw(st.integers(0, 7)):
        case 0:
            request = draw(noise(good))
        case 1 | 2 | 3:
            request = draw(absurd(type(good), KNOWN))
        case 4 | 5 if good.DESCRIPTOR.fields:
            request = draw(mangled(good, KNOWN))
        case _:
            request = good
    reads = draw(st.none() | st.integers(0, 4))
    return Call(path, kind, request, 1 if method == "Watch" else reads)


async def make(site: Site, call: Call) -> None:
    channel = site.channel(site.rig.address)
    if call.kind == "unary":
        await unary(channel, call.method, call.data)
    else:
        await streamed(channel, call.method, call.data, call.reads)


@profiles(250)
def test_the_router_survives_any_client(tiny_model_dir: Path, profile: settings) -> None:
    with a_site(lambda: a_rig(tiny_model_dir)) as site:

        @given(st.lists(calls(), min_size=1, max_size=5))
        @profile
        def flood(calls: list[Call]) -> None:
            async def batch() -> None:
                await asyncio.gather(*(make(site, call) for call in calls))
                await site.check()
                assert (await site.rig.client.loads()).active == 0

            site.run(batch())

        flood()


@profiles(50)
def test_reflection_survives_any_client(tiny_model_dir: Path, profile: settings) -> None:
    with a_site(lambda: a_rig(tiny_model_dir)) as site:
        words = st.one_of(
            noise(REFLECTION),
            absurd(reflection_pb2.ServerReflectionRequest).map(lambda m: m.SerializeToString()),
        )

        @given(st.lists(words, max_size=4), st.booleans())
        @profile
        def reflect(words: list[bytes], cut: bool) -> None:
            async def batch() -> None:
                stream = RawStream(site.channel(site.rig.address).stream_stream(REFLECT)())
                for word in words:
                    await stream.write(word)
                await stream.close(cut=cut)
                assert not site.complaints.lines, site.complaints.lines

            site.run(batch())

        reflect()
