"""The asynchronous client of an eastwest deployment.

    async with AsyncClient("127.0.0.1:50051") as client:
        async for chunk in client.generate("Once upon a time", max_tokens=50):
            print(chunk.text, end="")

        completion = await client.chat([{"role": "user", "content": "Hello"}], session="s1")
        print(completion.text, completion.timing.ttft.total_ns)

Every failure is one of `eastwest.errors`; `error.status.retriable` says whether the same call may
succeed later. `eastwest.Client` is the same for plain scripts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from eastwest import calls
from eastwest.answers import Chunk, Completion, ServedModel, ServerInfo, ServerLoads
from eastwest.calls import Message, Prompt, SamplingOptions
from eastwest.errors import Cancelled, InternalError, InvalidArgument, Unavailable
from eastwest.explanation import Explanation
from eastwest.rpc import error_from_rpc
from eastwest.types import SamplingParams
from eastwest.v1 import inference_pb2 as inference
from eastwest.v1 import inference_pb2_grpc as inference_grpc
from eastwest.wire import explanation_from_wire

_Call = grpc.aio.UnaryStreamCall[Any, inference.GenerateResponse]
AnswerT = TypeVar("AnswerT")


class AsyncGeneration:
    """One request, sent when it is first iterated or awaited.

    Iterate it for `Chunk`s as they come, await it for the `Completion` alone, or both: awaiting
    after (some of) the chunks waits for the rest. As a context manager it cancels the request
    where it is left before the end:

        async with client.generate(prompt) as generation:
            async for chunk in generation:
                if enough(chunk.text):
                    break
    """

    def __init__(self, start: Callable[[bool], _Call]) -> None:
        """start: begins the call, with chunks or without."""
        self._start = start
        self._call: _Call | None = None
        self._responses: AsyncIterator[inference.GenerateResponse] | None = None
        self._completion: Completion | None = None

    @property
    def completion(self) -> Completion | None:
        """The completion, once all chunks are through."""
        return self._completion

    def cancel(self) -> None:
        """End the request; it stops on all workers. Without effect after the end."""
        if self._call is not None:
            self._call.cancel()

    async def result(self) -> Completion:
        """Wait for the end and return the completion."""
        while self._completion is None:
            await self._next(stream=False)
        return self._completion

    def __await__(self) -> Generator[Any, None, Completion]:
        return self.result().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._completion is None:
            answer = await self._next(stream=True)
            if isinstance(answer, Chunk):
                return answer
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._completion is None:
            self.cancel()

    async def _next(self, *, stream: bool) -> Chunk | Completion:
        if self._responses is None:
            self._call = self._start(stream)
            self._responses = aiter(self._call)
        try:
            message = await anext(self._responses, None)
            if message is None:
                raise InternalError("the server ended the stream without a completion")
            answer = calls.read_response(message)
            if isinstance(answer, Completion):
                self._completion = answer
                await anext(self._responses, None)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # gRPC reports `cancel` in the way that asyncio reports a task's own cancellation.
            raise Cancelled("the request was cancelled by this client") from None
        return answer


class AsyncClient:
    """A connection to the router at `address` (``host:port``), opened on first use.

    tenant: isolation domain of caches and sessions, for every call of this client. timeout_s:
    deadline of each call, over all its phases, unless the call gives its own; None leaves it to
    the server's limits.default_timeout_s. credentials: TLS, where the server wants it.
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
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
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
    ) -> AsyncGeneration:
        """Continue `prompt`, given as text or as token ids.

        sampling: how tokens are chosen; single fields of it can be given by name (`max_tokens=50`)
        and win. session: continue this conversation, to whose tokens the prompt is appended;
        must_exist: fail with `NotFound` rather than begin it. request_id: for `abort`; unique
        among running requests. model: fail with `NotFound` where another one is served. priority:
        more is more urgent among the requests of this tenant, -10 to 10. slo_ttft_s, slo_tpot_s:
        seconds to the first token, and for each one after it, that placement aims at; None leaves
        them to the server.
        """
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
    ) -> AsyncGeneration:
        """Answer a conversation of ``{"role": ..., "content": ...}`` messages.

        Roles are system, user and assistant. With a `session` that exists, `messages` holds only
        the new turn. All else as in `generate`.
        """
        request = calls.messages_to_wire(messages)
        request.sampling_params.CopyFrom(calls.resolve_sampling(sampling, options))
        calls.Addressing(
            self._tenant, session, must_exist, request_id, model, priority, slo_ttft_s, slo_tpot_s
        ).fill(request)
        return self._generation(self._stub.Chat, request, timeout_s)

    async def abort(self, request_id: str) -> bool:
        """End a running request of this tenant; False where there is none of that id."""
        request = inference.AbortRequest(request_id=request_id, tenant=self._tenant)
        response: inference.AbortResponse = await self._answer(self._stub.Abort, request)
        return response.found

    async def explain(self, request_id: str) -> Explanation:
        """Why a request of this tenant went where it went, while it runs or as long as the router
        remembers it; `NotFound` afterwards."""
        try:
            request = inference.ExplainRequest(request_id=request_id, tenant=self._tenant)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"the request id cannot be sent: {error}") from error
        return explanation_from_wire(await self._answer(self._stub.Explain, request))

    async def model_info(self) -> ServedModel:
        """What model is served."""
        return calls.read_model(
            await self._answer(self._stub.GetModelInfo, inference.GetModelInfoRequest())
        )

    async def server_info(self) -> ServerInfo:
        """Version, identity and workers of the router."""
        return calls.read_server(
            await self._answer(self._stub.GetServerInfo, inference.GetServerInfoRequest())
        )

    async def loads(self) -> ServerLoads:
        """Load of the router and of each worker."""
        return calls.read_loads(
            await self._answer(self._stub.GetLoads, inference.GetLoadsRequest())
        )

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server can serve; `Unavailable` where it cannot within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._watch_until_serving():
                    pass
        except TimeoutError:
            raise Unavailable(f"{self._address} is not ready within {timeout_s} s") from None

    async def _watch_until_serving(self) -> bool:
        """False where the server went away meanwhile."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        try:
            async for status in call:
                if status.status == health_pb2.HealthCheckResponse.SERVING:
                    return True
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise error_from_rpc(error) from error
        finally:
            call.cancel()
        return False

    async def close(self) -> None:
        """Close the connection; running requests are cancelled. Idempotent."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    def _generation(
        self,
        method: Callable[..., _Call],
        request: inference.GenerateRequest | inference.ChatRequest,
        timeout_s: float | None,
    ) -> AsyncGeneration:
        deadline_s = self._timeout_s if timeout_s is None else timeout_s

        def start(stream: bool) -> _Call:
            request.stream = stream
            return method(request, timeout=deadline_s)

        return AsyncGeneration(start)

    async def _answer(self, method: Callable[..., Awaitable[AnswerT]], request: Any) -> AnswerT:
        try:
            return await method(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
