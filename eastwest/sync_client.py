"""The synchronous client of an eastwest deployment, for plain scripts and threads.

    with Client("127.0.0.1:50051") as client:
        for chunk in client.generate("Once upon a time", max_tokens=50):
            print(chunk.text, end="")

        completion = client.chat([{"role": "user", "content": "Hello"}], session="s1").result()
        print(completion.text, completion.timing.ttft.total_ns)

It speaks blocking gRPC and needs no event loop. A client may be shared by threads, a
`Generation` may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from eastwest import calls
from eastwest.answers import Chunk, Completion, ServedModel, ServerInfo, ServerLoads
from eastwest.calls import Message, Prompt, SamplingOptions
from eastwest.clock import SystemClock, seconds
from eastwest.errors import (
    DeadlineExceeded,
    EastWestError,
    InternalError,
    InvalidArgument,
    Unavailable,
)
from eastwest.explanation import Explanation
from eastwest.rpc import error_from_rpc
from eastwest.types import SamplingParams
from eastwest.v1 import inference_pb2 as inference
from eastwest.v1 import inference_pb2_grpc as inference_grpc
from eastwest.wire import explanation_from_wire

AnswerT = TypeVar("AnswerT")


class Generation:
    """One request, sent when it is first iterated or asked for its result.

    Iterate it for `Chunk`s as they come, call `result` for the `Completion` alone, or both. As a
    context manager it cancels the request where it is left before the end.
    """

    def __init__(self, start: Callable[[bool], Any]) -> None:
        """start: begins the call, with chunks or without; a `grpc` response iterator."""
        self._start = start
        self._call: Any = None
        self._completion: Completion | None = None

    @property
    def completion(self) -> Completion | None:
        """The completion, once all chunks are through."""
        return self._completion

    def cancel(self) -> None:
        """End the request; it stops on all workers. Without effect after the end."""
        if self._call is not None:
            self._call.cancel()

    def result(self) -> Completion:
        """Wait for the end and return the completion."""
        while self._completion is None:
            self._next(stream=False)
        return self._completion

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self._completion is None:
            answer = self._next(stream=True)
            if isinstance(answer, Chunk):
                return answer
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._completion is None:
            self.cancel()

    def _next(self, *, stream: bool) -> Chunk | Completion:
        if self._call is None:
            self._call = self._start(stream)
        try:
            message = next(self._call, None)
            if message is None:
                raise InternalError("the server ended the stream without a completion")
            answer = calls.read_response(message)
            if isinstance(answer, Completion):
                self._completion = answer
                next(self._call, None)
        except grpc.RpcError as error:
            raise _typed(error) from error
        return answer


class Client:
    """A connection to the router at `address` (``host:port``), opened on first use.

    Arguments and methods are those of `eastwest.AsyncClient`.
    """

    def __init__(
        self,
        address: str,
        *,
        tenant: str = "",
        timeout_s: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._tenant = tenant
        self._timeout_s = timeout_s
        options = calls.client_options()
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=options)
        self._address = address
        self._stub = inference_grpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call]

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        session: str | None = None,
        must_exist: bool = False,
        request_id: str = "",
        model: str = "",
        priority: int = 0,
        slo_ttft_s: float | None = None,
        slo_tpot_s: float | None = None,
        timeout_s: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation:
        """Continue `prompt`; see `eastwest.AsyncClient.generate`."""
        request = calls.prompt_to_wire(prompt)
        request.sampling_params.CopyFrom(calls.resolve_sampling(sampling, options))
        calls.Addressing(
            self._tenant, session, must_exist, request_id, model, priority, slo_ttft_s, slo_tpot_s
        ).fill(request)
        return self._generation(self._stub.Generate, request, timeout_s)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams | None = None,
        session: str | None = None,
        must_exist: bool = False,
        request_id: str = "",
        model: str = "",
        priority: int = 0,
        slo_ttft_s: float | None = None,
        slo_tpot_s: float | None = None,
        timeout_s: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation:
        """Answer a conversation; see `eastwest.AsyncClient.chat`."""
        request = calls.messages_to_wire(messages)
        request.sampling_params.CopyFrom(calls.resolve_sampling(sampling, options))
        calls.Addressing(
            self._tenant, session, must_exist, request_id, model, priority, slo_ttft_s, slo_tpot_s
        ).fill(request)
        return self._generation(self._stub.Chat, request, timeout_s)

    def abort(self, request_id: str) -> bool:
        """End a running request of this tenant; False where there is none of that id."""
        request = inference.AbortRequest(request_id=request_id, tenant=self._tenant)
        response: inference.AbortResponse = self._answer(self._stub.Abort, request)
        return response.found

    def explain(self, request_id: str) -> Explanation:
        """Why a request went where it went; see `eastwest.AsyncClient.explain`."""
        try:
            request = inference.ExplainRequest(request_id=request_id, tenant=self._tenant)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"the request id cannot be sent: {error}") from error
        return explanation_from_wire(self._answer(self._stub.Explain, request))

    def model_info(self) -> ServedModel:
        """What model is served."""
        return calls.read_model(
            self._answer(self._stub.GetModelInfo, inference.GetModelInfoRequest())
        )

    def server_info(self) -> ServerInfo:
        """Version, identity and workers of the router."""
        return calls.read_server(
            self._answer(self._stub.GetServerInfo, inference.GetServerInfoRequest())
        )

    def loads(self) -> ServerLoads:
        """Load of the router and of each worker."""
        return calls.read_loads(self._answer(self._stub.GetLoads, inference.GetLoadsRequest()))

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server can serve; `Unavailable` where it cannot within `timeout_s`."""
        clock = SystemClock()
        start_ns = clock.now_ns()
        while (left_s := timeout_s - seconds(clock.now_ns() - start_ns)) > 0:
            if self._watch_until_serving(left_s):
                return
        raise Unavailable(f"{self._address} is not ready within {timeout_s} s")

    def _watch_until_serving(self, timeout_s: float) -> bool:
        """False where the server went away meanwhile, or the time is over."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        request = health_pb2.HealthCheckRequest()
        call = stub.Watch(request, wait_for_ready=True, timeout=timeout_s)
        try:
            for status in call:
                if status.status == health_pb2.HealthCheckResponse.SERVING:
                    return True
        except grpc.RpcError as error:
            typed = _typed(error)
            if not isinstance(typed, (Unavailable, DeadlineExceeded)):
                raise typed from error
        finally:
            call.cancel()
        return False

    def close(self) -> None:
        """Close the connection; running requests are cancelled. Idempotent."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _generation(
        self,
        method: Callable[..., Any],
        request: inference.GenerateRequest | inference.ChatRequest,
        timeout_s: float | None,
    ) -> Generation:
        deadline_s = self._timeout_s if timeout_s is None else timeout_s

        def start(stream: bool) -> Any:
            request.stream = stream
            return method(request, timeout=deadline_s)

        return Generation(start)

    def _answer(self, method: Callable[..., AnswerT], request: Any) -> AnswerT:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise _typed(error) from error


def _typed(error: grpc.RpcError) -> EastWestError:
    """The typed error behind a blocking call's, which tells status and metadata alike."""
    return error_from_rpc(cast(grpc.aio.AioRpcError, error))
