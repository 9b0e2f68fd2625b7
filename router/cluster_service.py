"""The `Cluster` service: what an operator asks of the router. One call, one drain, its reports."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from operator import methodcaller
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from eastwest.errors import EastWestError, InvalidArgument, Unavailable
from eastwest.rpc import abort_with
from eastwest.v1 import cluster_pb2 as cluster
from router import edge
from router.drains import DrainState, DrainView
from router.edge import Malformed
from router.shell import Shell

SERVICE = cluster.DESCRIPTOR.services_by_name["Cluster"].full_name
TIMEOUT_MAX_S = 86_400.0

Context = grpc.aio.ServicerContext[Any, Any]


class ClusterService:
    """drain_timeout_s: where the operator names none."""

    def __init__(self, shell: Shell, drain_timeout_s: float) -> None:
        self._shell = shell
        self._drain_timeout_s = drain_timeout_s

    def handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Drain": grpc.unary_stream_rpc_method_handler(
                typed(self._drain),
                request_deserializer=partial(edge.parse, cluster.DrainRequest),
                response_serializer=methodcaller("SerializeToString"),
            ),
            "CancelDrain": grpc.unary_unary_rpc_method_handler(
                typed(self._cancel),
                request_deserializer=partial(edge.parse, cluster.CancelDrainRequest),
                response_serializer=methodcaller("SerializeToString"),
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _drain(self, request: cluster.DrainRequest, context: Context) -> None:
        """See cluster.proto."""
        timeout_s = self._drain_timeout_s
        if request.HasField("timeout_s"):
            timeout_s = request.timeout_s
        if math.isnan(timeout_s) or not 0 <= timeout_s <= TIMEOUT_MAX_S:
            raise InvalidArgument(f"timeout_s is {timeout_s:g}; allowed: 0 to {TIMEOUT_MAX_S:g}")
        self._shell.drain(request.worker_id, timeout_s)
        while True:
            view = self._shell.drain_view(request.worker_id)
            assert view is not None
            if view.state is DrainState.LOST:
                raise Unavailable(
                    f"worker {view.worker_id} was lost while it drained, with {view.running} "
                    f"requests that go on elsewhere; allowed: drain it again when it is up"
                )
            await context.write(_report(view, others_serve=self._shell.ready.is_set()))
            if view.state is not DrainState.DRAINING:
                return
            await self._shell.worker_stirs()

    async def _cancel(
        self, request: cluster.CancelDrainRequest, context: Context
    ) -> cluster.CancelDrainResponse:
        """See cluster.proto."""
        return cluster.CancelDrainResponse(was_draining=self._shell.cancel_drain(request.worker_id))


def _report(view: DrainView, *, others_serve: bool) -> cluster.DrainReport:
    return cluster.DrainReport(
        worker_id=view.worker_id,
        state=view.state.value,
        running=view.running,
        finished=view.finished,
        moved=view.moved,
        sessions_resting=view.sessions_resting,
        sessions_stored=view.sessions_stored,
        sessions_dropped=view.sessions_dropped,
        elapsed_s=view.elapsed_s,
        others_serve=others_serve,
    )


def typed(
    method: Callable[[Any, Context], Awaitable[Any]],
) -> Callable[[Message | Malformed, Context], Awaitable[Any]]:
    """The method, whose typed errors end the call."""

    async def call(request: Message | Malformed, context: Context) -> Any:
        try:
            if isinstance(request, Malformed):
                raise request.error
            return await method(request, context)
        except EastWestError as error:
            await abort_with(context, error)

    return call
