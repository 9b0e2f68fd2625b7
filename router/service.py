"""The public `Inference` service: one call from its request to its one ending.

    parse ─▶ admit (validate, tokenise, find the session) ─▶ scheduler ─▶ chunks ─▶ keep the
    session ─▶ completion, or from anywhere a status

Whatever ends a call early (an error, an abort, a client that goes away) ends its request at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from eastwest.answers import Chunk
from eastwest.blocks import cache_salt
from eastwest.clock import Clock, seconds
from eastwest.config import Config
from eastwest.errors import (
    Cancelled,
    DeadlineExceeded,
    EastWestError,
    InvalidArgument,
    Overloaded,
    Phase,
)
from eastwest.messages import ModelInfo
from eastwest.rpc import abort_with
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import chunk_to_wire, explanation_to_wire
from router import edge, reports
from router.clients import Clients, client_of
from router.conversations import Conversations, Turn
from router.edge import Ask, Malformed
from router.requests import Request
from router.shell import Shell
from router.streams import ClientStream, Write
from router.text import Detokenizer, Tokenizer

SERVICE = inference.DESCRIPTOR.services_by_name["Inference"].full_name

# What the scheduler ends at the deadline, it ends with the phase; so it is given a moment.
_DELIVERY_GRACE_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]
Generating = inference.GenerateRequest | inference.ChatRequest
Admitted = Callable[[Ask, Request, ModelInfo], None]
MessageT = TypeVar("MessageT", bound=Message)


@dataclass(slots=True)
class _Call:
    """A Generate or Chat call. work_id: the request's id in this router and on its workers, unique
    over tenants, routers and time, whatever id the client chose."""

    work_id: str
    aborted: bool = False


class InferenceService:
    """See the module. `handlers` is what a gRPC server is given; other front ends use `answer`.

    calls_max: calls that may be open at once. clients: who has how many of them.
    """

    def __init__(
        self,
        config: Config,
        shell: Shell,
        tokenizer: Tokenizer,
        conversations: Conversations,
        *,
        has_chat_template: bool,
        router_id: str,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._limits = config.limits
        self._slo = config.slo.slo()
        # Calls of clients that do not read stay open after their request has ended, hence twice.
        self.calls_max = 2 * (config.router.queue_max + config.router.active_max)
        self.clients = Clients(config.limits.client_streams)
        self._shell = shell
        self._tokenizer = tokenizer
        self._conversations = conversations
        self._has_chat_template = has_chat_template
        self._router_id = router_id
        self._clock = clock
        self._rng = rng
        self._started_ns = clock.now_ns()
        self._calls: dict[tuple[str, str], _Call] = {}
        self._calls_begun = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        methods = {
            "Generate": _streaming(self.generate, inference.GenerateRequest),
            "Chat": _streaming(self.chat, inference.ChatRequest),
            "Abort": _answering(self.abort, inference.AbortRequest),
            "Explain": _answering(self.explain, inference.ExplainRequest),
            "GetModelInfo": _answering(self.model_info, inference.GetModelInfoRequest),
            "GetServerInfo": _answering(self.server_info, inference.GetServerInfoRequest),
            "GetLoads": _answering(self.loads, inference.GetLoadsRequest),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def drained(self) -> None:
        """Wait until no Generate or Chat call is open."""
        await self._idle.wait()

    # Calls that are one answer.

    def abort(self, request: inference.AbortRequest) -> inference.AbortResponse:
        call = self._calls.get((request.tenant, request.request_id))
        if call is not None:
            call.aborted = True
            self._shell.cancel(call.work_id, _aborted())
        return inference.AbortResponse(found=call is not None)

    def explain(self, request: inference.ExplainRequest) -> inference.ExplainResponse:
        tenant, name = edge.read_explain(request)
        return explanation_to_wire(self._shell.explain(cache_salt(tenant), name))

    def model_info(self, _: inference.GetModelInfoRequest) -> inference.GetModelInfoResponse:
        return reports.model_report(self._shell.model(), self._has_chat_template)

    def server_info(self, _: inference.GetServerInfoRequest) -> inference.GetServerInfoResponse:
        uptime_s = seconds(self._clock.now_ns() - self._started_ns)
        loads, links = self._shell.loads(), self._shell.links
        return reports.server_report(self._router_id, uptime_s, loads, links)

    def loads(self, _: inference.GetLoadsRequest) -> inference.GetLoadsResponse:
        return reports.loads_report(self._shell.loads(), self._shell.links)

    # Calls that generate.

    async def generate(
        self, request: inference.GenerateRequest | Malformed, context: Context
    ) -> None:
        await self._answer_grpc(request, context)

    async def chat(self, request: inference.ChatRequest | Malformed, context: Context) -> None:
        await self._answer_grpc(request, context)

    async def answer(
        self,
        request: Generating,
        write: Write,
        *,
        accepted_ns: int,
        remaining_s: float | None,
        admitted: Admitted = lambda _ask, _request, _model: None,
    ) -> None:
        """Serve one call to its end: all of its output goes to `write`, the completion last, or
        one typed error is raised. Cancelled where the client goes away.

        remaining_s: what the client's own deadline leaves, if it has one. admitted: told what was
        understood, before anything is written.
        """
        deadline_ns = edge.deadline_ns(accepted_ns, remaining_s, self._limits)
        model = self._shell.model()
        ask = edge.read(request, model, self._limits, self._slo, self._rng)
        with self._open(ask) as call:
            async with self._conversations.turn(ask, model.fingerprint) as turn:
                admission = self._admit(ask, call, turn, model, accepted_ns, deadline_ns)
                admitted(ask, admission, model)
                await self._serve(ask, turn, admission, model, write)

    async def _answer_grpc(self, request: Generating | Malformed, context: Context) -> None:
        accepted_ns = self._clock.now_ns()
        try:
            if isinstance(request, Malformed):
                raise request.error
            with self.clients.stream(client_of(context.peer())):
                await self.answer(
                    request,
                    lambda answer: context.write(_to_wire(answer)),
                    accepted_ns=accepted_ns,
                    remaining_s=context.time_remaining(),
                )
        except EastWestError as error:
            await abort_with(context, error)

    @contextmanager
    def _open(self, ask: Ask) -> Iterator[_Call]:
        """The call among those that `abort` finds."""
        key = ask.tenant, ask.request_id
        if key in self._calls:
            raise InvalidArgument(
                f"request_id {ask.request_id!r} is running; allowed: ids of no running request"
            )
        if len(self._calls) >= self.calls_max:
            raise Overloaded(
                f"{self.calls_max} calls are open; allowed: no more",
                phase=Phase.ADMISSION,
                retry_after_s=1.0,
            )
        self._calls_begun += 1
        call = _Call(f"{ask.request_id}@{self._router_id}.{self._calls_begun}")
        self._calls[key] = call
        self._idle.clear()
        try:
            yield call
        finally:
            del self._calls[key]
            if not self._calls:
                self._idle.set()

    def _admit(
        self,
        ask: Ask,
        call: _Call,
        turn: Turn,
        model: ModelInfo,
        accepted_ns: int,
        deadline_ns: int,
    ) -> Request:
        """What the scheduler is asked for; raises where it should not be asked any more."""
        if call.aborted:
            raise _aborted()
        if self._clock.now_ns() >= deadline_ns:
            raise DeadlineExceeded("the deadline passed in admission", phase=Phase.ADMISSION)
        return Request(
            request_id=call.work_id,
            salt=cache_salt(ask.tenant),
            session_id=ask.session.session_id if ask.session else "",
            prompt=turn.prompt,
            sampling=ask.sampling,
            max_tokens=edge.resolve_max_tokens(ask.sampling, len(turn.prompt), model, self._limits),
            accepted_ns=accepted_ns,
            deadline_ns=deadline_ns,
            priority=ask.priority,
            slo=ask.slo,
            usual_slo=None if ask.slo == self._slo else self._slo,
            client_id=ask.request_id,
        )

    async def _serve(
        self, ask: Ask, turn: Turn, request: Request, model: ModelInfo, write: Write
    ) -> None:
        """Run an admitted request to its end, and write all of it."""
        sampling = ask.sampling
        eos = () if sampling.ignore_eos else model.eos_ids
        stream = ClientStream(
            Detokenizer(self._tokenizer, sampling.stop),
            ending=frozenset((*eos, *sampling.stop_token_ids)),
            stops=bool(sampling.stop),
            chunks=ask.stream,
            max_tokens=request.max_tokens,
            clock=self._clock,
        )
        left_s = seconds(request.deadline_ns - self._clock.now_ns()) + _DELIVERY_GRACE_S
        self._shell.submit(request, stream)
        try:
            async with stream.patience(left_s):
                outcome = await stream.run(write)
                complete = stream.complete(ask.request_id, outcome)
                await self._keep(ask, turn, model, complete)
                await write(complete)
        finally:
            # Without effect where the request has ended by itself.
            self._shell.cancel(request.request_id, Cancelled("the client went away"))

    async def _keep(
        self, ask: Ask, turn: Turn, model: ModelInfo, complete: inference.GenerateComplete
    ) -> None:
        """Put the session back, before the client can know that it may go on."""
        output = tuple(complete.output_ids)
        match complete.WhichOneof("matched_stop"):
            case "matched_token_id":
                output = output[:-1]
            case "matched_stop_str":
                output = self._conversations.output_before(output, complete.text)
        await self._conversations.keep(ask, turn, model.fingerprint, output, complete.text)


def _to_wire(answer: Chunk | inference.GenerateComplete) -> inference.GenerateResponse:
    if isinstance(answer, Chunk):
        return inference.GenerateResponse(chunk=chunk_to_wire(answer))
    return inference.GenerateResponse(complete=answer)


def _aborted() -> Cancelled:
    return Cancelled("the request was aborted")


def _streaming(method: Callable[..., Any], kind: type[Message]) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_stream_rpc_method_handler(
        method,
        request_deserializer=partial(edge.parse, kind),
        response_serializer=inference.GenerateResponse.SerializeToString,
    )


def _answering(
    method: Callable[[MessageT], Message], kind: type[MessageT]
) -> grpc.RpcMethodHandler[Any, Any]:
    async def answer(request: MessageT | Malformed, context: Context) -> Message:
        try:
            if isinstance(request, Malformed):
                raise request.error
            return method(request)
        except EastWestError as error:
            await abort_with(context, error)

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=partial(edge.parse, kind),
        response_serializer=methodcaller("SerializeToString"),
    )
