"""What a tenant may ask of its sessions besides going on with them.

async with SessionsClient("127.0.0.1:50051", tenant="acme") as sessions:
    async for session in sessions.list():
        print(session.id, session.tokens)
    await sessions.fork("draft", "second-draft")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc.aio

from eastwest.calls import client_options
from eastwest.errors import InvalidArgument
from eastwest.rpc import error_from_rpc
from eastwest.v1 import sessions_pb2 as sessions
from eastwest.v1 import sessions_pb2_grpc as sessions_grpc

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session. tokens, messages: of all turns; no messages where Generate began it. age_s:
    since its last request. version: counts its requests. model_matches: whether its tokens are of
    the model that is served."""

    id: str
    tokens: int
    messages: int
    age_s: float
    version: int
    model_matches: bool


@dataclass(frozen=True, slots=True)
class SessionDetail:
    """A session, and its KV. kv_bytes: of all of its tokens, once. stored_tokens: leading tokens
    whose KV the offline store has; workers: the same, by worker that has it in memory. Both are as
    the router knows them, which may be late."""

    session: SessionInfo
    kv_bytes: int
    stored_tokens: int
    workers: dict[str, int]


class SessionsClient:
    """A connection to the router at `address` (``host:port``). Failures are typed, as of the other
    clients; `NotFound` where a session does not exist, or is another tenant's."""

    def __init__(self, address: str, *, tenant: str = "", timeout_s: float = 30.0) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=client_options())
        self._stub = sessions_grpc.SessionsStub(self._channel)  # type: ignore[no-untyped-call]
        self._tenant = tenant
        self._timeout_s = timeout_s

    async def list(self, *, page: int = 100) -> AsyncIterator[SessionInfo]:
        """All sessions in order of their ids, asked for `page` at a time."""
        after, more = "", True
        while more:
            answer: sessions.ListSessionsResponse = await self._ask(
                self._stub.List, sessions.ListSessionsRequest, after=after, limit=page
            )
            for wire in answer.sessions:
                yield _info(wire)
                after = wire.id
            more = answer.more

    async def get(self, session_id: str) -> SessionDetail:
        """One session, and where its KV is."""
        answer: sessions.GetSessionResponse = await self._ask(
            self._stub.Get, sessions.GetSessionRequest, id=session_id
        )
        workers = {held.worker_id: held.tokens for held in answer.workers}
        session = _info(answer.session)
        return SessionDetail(session, answer.kv_bytes, answer.stored_tokens, workers)

    async def fork(self, session_id: str, new_id: str) -> SessionInfo:
        """Another session that begins as this one stands. `InvalidArgument` where `new_id`
        exists."""
        return _info(
            await self._ask(
                self._stub.Fork, sessions.ForkSessionRequest, id=session_id, new_id=new_id
            )
        )

    async def delete(self, session_id: str, *, keep_kv: bool = False) -> bool:
        """Forget a session, and erase its KV unless that is kept; False where there was none.
        `Overloaded` while a request uses it."""
        answer: sessions.DeleteSessionResponse = await self._ask(
            self._stub.Delete, sessions.DeleteSessionRequest, id=session_id, keep_kv=keep_kv
        )
        return answer.found

    async def export(self, session_id: str) -> bytes:
        """The session as bytes for `import_`."""
        answer: sessions.ExportSessionResponse = await self._ask(
            self._stub.Export, sessions.ExportSessionRequest, id=session_id
        )
        return answer.data

    async def import_(self, data: bytes, session_id: str = "") -> SessionInfo:
        """A session from an export, under its own id or another one. `InvalidArgument` where that
        exists, or `data` is no export."""
        return _info(
            await self._ask(
                self._stub.Import, sessions.ImportSessionRequest, id=session_id, data=data
            )
        )

    async def close(self) -> None:
        """Close the connection. Idempotent."""
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

    async def _ask(
        self, method: Callable[..., Awaitable[AnswerT]], kind: Callable[..., Any], **fields: Any
    ) -> AnswerT:
        try:
            request = kind(tenant=self._tenant, **fields)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"the request cannot be sent: {error}") from error
        try:
            return await method(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error


def _info(wire: sessions.SessionSummary) -> SessionInfo:
    return SessionInfo(
        wire.id, wire.tokens, wire.messages, wire.age_s, wire.version, wire.model_matches
    )
