"""The `Sessions` service: what a tenant may ask of its sessions besides going on with them.

Whoever asks for a session of another tenant takes the same way to the same answer as who asks for
one that does not exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from eastwest.blocks import cache_salt
from eastwest.clock import Clock
from eastwest.config import LimitsConfig
from eastwest.errors import CorruptData, InvalidArgument, NotFound, TooLarge
from eastwest.v1 import sessions_pb2 as sessions
from kv_store.sessions import SessionRecord, SessionSummary, decode_session, encode_session
from router import edge
from router.cluster_service import typed
from router.erasing import Erase
from router.session_book import SessionBook
from router.shell import Shell

SERVICE = sessions.DESCRIPTOR.services_by_name["Sessions"].full_name
LIST_DEFAULT, LIST_MAX = 100, 1000

Context = grpc.aio.ServicerContext[Any, Any]


class SessionsService:
    """See sessions.proto. book: whose records they are. erase: what is left of a deleted one."""

    def __init__(
        self,
        book: SessionBook,
        shell: Shell,
        erase: Erase,
        limits: LimitsConfig,
        clock: Clock,
    ) -> None:
        self._book = book
        self._shell = shell
        self._erase = erase
        self._limits = limits
        self._clock = clock

    def handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, tuple[Callable[[Any, Context], Awaitable[Message]], type[Message]]] = {
            "List": (self._list, sessions.ListSessionsRequest),
            "Get": (self._get, sessions.GetSessionRequest),
            "Fork": (self._fork, sessions.ForkSessionRequest),
            "Delete": (self._delete, sessions.DeleteSessionRequest),
            "Export": (self._export, sessions.ExportSessionRequest),
            "Import": (self._import, sessions.ImportSessionRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                typed(method),
                request_deserializer=partial(edge.parse, kind),
                response_serializer=methodcaller("SerializeToString"),
            )
            for name, (method, kind) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _list(
        self, request: sessions.ListSessionsRequest, _: Context
    ) -> sessions.ListSessionsResponse:
        if not 0 <= request.limit <= LIST_MAX:
            raise InvalidArgument(f"limit is {request.limit}; allowed: 0 to {LIST_MAX}")
        limit = request.limit or LIST_DEFAULT
        after = edge.read_name("after", request.after, edge.SESSION_ID_BYTES)
        found = await self._book.page(_tenant(request.tenant), after, limit)
        told = [self._summary(summary) for summary in found]
        return sessions.ListSessionsResponse(sessions=told, more=len(told) == limit)

    async def _get(
        self, request: sessions.GetSessionRequest, _: Context
    ) -> sessions.GetSessionResponse:
        record = await self._found(request.tenant, request.id)
        model = self._shell.model()
        response = sessions.GetSessionResponse(
            session=self._summary(record.summary()),
            kv_bytes=len(record.tokens) * model.kv.bytes_per_token,
        )
        if record.fingerprint == model.fingerprint:
            salt = cache_salt(record.tenant)
            response.stored_tokens, held = self._shell.kv_of(record.tokens, salt)
            for worker_id, tokens in sorted(held.items()):
                response.workers.add(worker_id=worker_id, tokens=tokens)
        return response

    async def _fork(
        self, request: sessions.ForkSessionRequest, _: Context
    ) -> sessions.SessionSummary:
        record = await self._found(request.tenant, request.id)
        return await self._begin(replace(record, session_id=_id("new_id", request.new_id)))

    async def _delete(
        self, request: sessions.DeleteSessionRequest, _: Context
    ) -> sessions.DeleteSessionResponse:
        tenant, session_id = _tenant(request.tenant), _id("id", request.id)
        with self._book.hold(tenant, session_id):
            record = await self._book.find(tenant, session_id, certain=True)
            if record is None or record.deleted:
                return sessions.DeleteSessionResponse(found=False)
            gone = replace(
                record, tokens=(), messages=(), fingerprint="", version=record.version + 1
            )
            await self._book.put(gone, certain=True)
            if not request.keep_kv:
                await self._erase(record)
        return sessions.DeleteSessionResponse(found=True)

    async def _export(
        self, request: sessions.ExportSessionRequest, _: Context
    ) -> sessions.ExportSessionResponse:
        data = encode_session(await self._found(request.tenant, request.id))
        if len(data) > self._limits.message_bytes:
            raise TooLarge(
                f"the session is {len(data)} bytes, more than can be imported again; allowed: "
                f"{self._limits.message_bytes}, limits.message_bytes"
            )
        return sessions.ExportSessionResponse(data=data)

    async def _import(
        self, request: sessions.ImportSessionRequest, _: Context
    ) -> sessions.SessionSummary:
        tenant = _tenant(request.tenant)
        try:
            record = decode_session(request.data)
        except CorruptData as error:
            raise InvalidArgument(f"data is no export: {error.message}") from error
        model = self._shell.model()
        ours = record.fingerprint == model.fingerprint
        if record.deleted or not (ours or record.messages):
            raise InvalidArgument(
                "data is of another model and has no messages to render it from; allowed: sessions "
                "of the model that is served, and chats of any"
            )
        if ours and max(record.tokens) >= model.vocab_size:
            raise InvalidArgument(
                f"data has token {max(record.tokens)}; allowed: below {model.vocab_size}"
            )
        session_id = _id("id", request.id or record.session_id)
        return await self._begin(replace(record, tenant=tenant, session_id=session_id))

    async def _begin(self, record: SessionRecord) -> sessions.SessionSummary:
        """A session that did not exist."""
        tenant, session_id = record.tenant, record.session_id
        with self._book.hold(tenant, session_id):
            former = await self._book.find(tenant, session_id, certain=True)
            if former is not None and not former.deleted:
                raise InvalidArgument(
                    f"session {session_id!r} exists; allowed: an id of none that does"
                )
            version = 1 if former is None else former.version + 1
            begun = replace(record, version=version, updated_s=self._clock.wall_s())
            await self._book.put(begun, certain=True)
        return self._summary(begun.summary())

    async def _found(self, tenant: str, session_id: str) -> SessionRecord:
        tenant, session_id = _tenant(tenant), _id("id", session_id)
        record = await self._book.find(tenant, session_id, certain=True)
        if record is None or record.deleted:
            raise NotFound(f"session {session_id!r} does not exist; allowed: one of the tenant's")
        return record

    def _summary(self, summary: SessionSummary) -> sessions.SessionSummary:
        return sessions.SessionSummary(
            id=summary.session_id,
            tokens=summary.tokens,
            messages=summary.messages,
            age_s=max(0.0, self._clock.wall_s() - summary.updated_s),
            version=summary.version,
            model_matches=summary.fingerprint == self._shell.model().fingerprint,
        )


def _tenant(tenant: str) -> str:
    return edge.read_name("tenant", tenant, edge.TENANT_BYTES)


def _id(what: str, session_id: str) -> str:
    if not session_id:
        raise InvalidArgument(f"{what} is empty; allowed: 1 to {edge.SESSION_ID_BYTES} bytes")
    return edge.read_name(what, session_id, edge.SESSION_ID_BYTES)
