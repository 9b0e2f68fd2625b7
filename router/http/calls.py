"""Chat and completion calls over HTTP: an ASGI endpoint around `InferenceService.answer`.

    read the body ─▶ answer, while the client is there ─▶ one object, or events as they come

Nothing is sent before there is something to tell, so that whatever fails until then has its HTTP
status. What fails later is the stream's last event. A client that goes away cancels its call.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from eastwest.answers import Chunk
from eastwest.clock import DURATION_MAX_S, Clock, ns, seconds
from eastwest.config import LimitsConfig
from eastwest.errors import (
    DeadlineExceeded,
    EastWestError,
    InternalError,
    Overloaded,
    Phase,
    TooLarge,
)
from eastwest.messages import ModelInfo
from eastwest.v1 import inference_pb2 as inference
from router.edge import Ask
from router.http.answers import Answer
from router.http.bodies import Form, read_body
from router.http.failures import error_body, error_event, error_headers
from router.http.fields import Refused
from router.requests import Request
from router.service import InferenceService
from router.text import Tokenizer

log = logging.getLogger(__name__)

TENANT_HEADER = "x-eastwest-tenant"
TIMEOUT_HEADER = "x-eastwest-timeout-s"
REQUEST_ID_HEADER = "x-request-id"

# A client that takes longer to send its body is not waited for.
_BODY_S = 60.0
# A client that does not read may take so long to hear why its call has ended.
_LAST_WORDS_S = 1.0
_EVENT_HEADERS = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Gone(Exception):
    """The client is not there any more."""


class Calls:
    """All chat and completion calls of this router over HTTP."""

    def __init__(
        self, service: InferenceService, tokenizer: Tokenizer, limits: LimitsConfig, clock: Clock
    ) -> None:
        self._service = service
        self._tokenizer = tokenizer
        self._limits = limits
        self._clock = clock
        self._open = 0

    async def handle(self, chat: bool, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call; never raises but for what nobody can tell the client."""
        headers = Headers(scope=scope)
        reply = _Reply(send, headers.get(REQUEST_ID_HEADER))
        self._open += 1
        try:
            with self._service.clients.stream(_client(scope)):
                await self._serve(chat, headers, receive, reply)
        except _Gone:
            pass
        except EastWestError as error:
            await reply.fail(error)
        except Exception as error:
            log.exception("a call over HTTP failed")
            await reply.fail(InternalError.caused_by("the call", error))
        finally:
            self._open -= 1

    async def _serve(self, chat: bool, headers: Headers, receive: Receive, reply: _Reply) -> None:
        accepted_ns = self._clock.now_ns()
        if self._open > self._service.calls_max:
            raise Overloaded(
                f"{self._service.calls_max} calls are open; allowed: no more",
                phase=Phase.ADMISSION,
                retry_after_s=1.0,
            )
        check_size(headers, self._limits.metadata_bytes)
        check_content(headers)
        timeout_s = read_timeout(headers)
        tenant = read_tenant(headers)
        body_s = _BODY_S if timeout_s is None else min(_BODY_S, timeout_s)
        body = await _read(receive, headers, self._limits.message_bytes, body_s)
        call = read_body(body, chat=chat, tenant=tenant)
        writer = _Writer(reply, call.form, self._tokenizer, int(self._clock.wall_s()))
        remaining_s = None
        if timeout_s is not None:
            remaining_s = seconds(accepted_ns + ns(timeout_s) - self._clock.now_ns())
        work = self._service.answer(
            call.request,
            writer.write,
            accepted_ns=accepted_ns,
            remaining_s=remaining_s,
            admitted=writer.admitted,
        )
        await _while_connected(receive, work)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path's ASGI application. chat: whether it takes chat or text completions."""

    calls: Calls
    chat: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.calls.handle(self.chat, scope, receive, send)


class _Reply:
    """The response of one call: nothing yet, then a whole body or events, then closed."""

    def __init__(self, send: Send, request_id: str | None) -> None:
        self._send = send
        self._echoed = [] if request_id is None else [(REQUEST_ID_HEADER, request_id)]
        self._begun = False
        self._closed = False

    async def whole(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        await self._begin(status, [*headers, ("content-length", str(len(body)))])
        await self._body(body, more=False)

    async def events(self, data: bytes, *, more: bool) -> None:
        if not self._begun:
            await self._begin(200, _EVENT_HEADERS)
        await self._body(data, more=more)

    async def fail(self, error: EastWestError) -> None:
        """Tell how it ended, to a client that reads; one that does not is cut off."""
        if self._closed:
            return
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                if self._begun:
                    await self._body(error_event(error), more=False)
                else:
                    await self.whole(error.status.http, error_headers(error), error_body(error))
        except TimeoutError:
            log.info("a client that does not read is cut off: %s", error.message)

    async def _begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in [*headers, *self._echoed]]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        self._begun = True

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._closed = not more


class _Writer:
    """Puts what `InferenceService.answer` writes into a reply."""

    def __init__(self, reply: _Reply, form: Form, tokenizer: Tokenizer, created_s: int) -> None:
        self._reply = reply
        self._form = form
        self._tokenizer = tokenizer
        self._created_s = created_s
        self._answer: Answer | None = None

    def admitted(self, ask: Ask, request: Request, model: ModelInfo) -> None:
        self._answer = Answer(
            form=self._form,
            request_id=ask.request_id,
            created_s=self._created_s,
            model=model,
            prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
            tokenizer=self._tokenizer,
        )

    async def write(self, output: Chunk | inference.GenerateComplete) -> None:
        answer = self._answer
        assert answer is not None
        if isinstance(output, Chunk):
            if data := answer.chunk(output):
                await self._reply.events(data, more=True)
        elif self._form.stream:
            await self._reply.events(answer.last(output), more=False)
        else:
            body = answer.whole(output)
            await self._reply.whole(200, [("content-type", "application/json")], body)


async def _read(receive: Receive, headers: Headers, bytes_max: int, timeout_s: float) -> bytes:
    """The whole body; raises `TooLarge` as soon as it is known to be."""
    too_large = TooLarge(f"the body has more than {bytes_max} bytes; allowed: at most so many")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > bytes_max:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                body += message.get("body", b"")
                if len(body) > bytes_max:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the body had not arrived within {timeout_s:g} s", phase=Phase.ADMISSION
        ) from None


async def _while_connected(receive: Receive, work: Awaitable[None]) -> None:
    """Do `work` to its end; raises `_Gone` where the client goes away before."""
    working = asyncio.current_task()
    assert working is not None
    gone = False

    def leave(leaving: asyncio.Future[None]) -> None:
        nonlocal gone
        if not leaving.cancelled():
            gone = True
            working.cancel()

    leaving = asyncio.ensure_future(_disconnected(receive))
    leaving.add_done_callback(leave)
    try:
        await work
    except asyncio.CancelledError:
        # Unless somebody else has cancelled the call, too.
        if gone and working.uncancel() == 0:
            raise _Gone from None
        raise
    finally:
        leaving.remove_done_callback(leave)
        leaving.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _client(scope: Scope) -> str:
    """Whose connection it is; see `router.clients`."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def check_size(headers: Headers, bytes_max: int) -> None:
    """The parser bounds headers that come piecemeal; those that came at once are bounded here."""
    size = sum(len(name) + len(value) for name, value in headers.raw)
    if size > bytes_max:
        raise TooLarge(f"the headers have {size} bytes; allowed: at most {bytes_max}")


def check_content(headers: Headers) -> None:
    """A web page can make a browser send anything but JSON anywhere, unasked."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(None, f"content-type is {kind[:64]!r}; allowed: application/json")
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise Refused(None, f"content-encoding is {coding[:64]!r}; allowed: none")


def read_timeout(headers: Headers) -> float | None:
    """What the client's own deadline leaves, in seconds; None where it sets none."""
    value = _single(headers, TIMEOUT_HEADER)
    if not value:
        return None
    try:
        timeout_s = float(value)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise Refused(
            TIMEOUT_HEADER, f"{TIMEOUT_HEADER} is {value[:64]!r}; allowed: seconds, above 0"
        )
    return min(timeout_s, DURATION_MAX_S)


def read_tenant(headers: Headers) -> str:
    """Whose call it is; "" where the client does not say."""
    value = _single(headers, TENANT_HEADER)
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise Refused(TENANT_HEADER, f"{TENANT_HEADER} is not valid UTF-8") from None


def _single(headers: Headers, name: str) -> str:
    values = headers.getlist(name)
    if len(values) > 1:
        raise Refused(name, f"{name} is given {len(values)} times; allowed: once")
    return values[0] if values else ""
