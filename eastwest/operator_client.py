"""The operator's side of the `Cluster` service.

async with OperatorClient("127.0.0.1:50051") as operator:
    async for report in operator.drain("decode-1", timeout_s=60.0):
        print(report.running)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc.aio

from eastwest.calls import client_options
from eastwest.rpc import error_from_rpc
from eastwest.v1 import cluster_pb2 as cluster
from eastwest.v1 import cluster_pb2_grpc as cluster_grpc


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How a drain stands.

    state: draining; drained, the worker leaves; or cancelled, it stays. Of the router's requests,
    since the drain began: running are served by the worker still, finished have ended there, moved
    are served by others. sessions_resting: on the worker; stored and dropped (those that no store
    took) are known with the last report. others_serve: whether requests can be served without it.
    """

    worker_id: str
    state: str
    running: int
    finished: int
    moved: int
    sessions_resting: int
    sessions_stored: int
    sessions_dropped: int
    elapsed_s: float
    others_serve: bool


class OperatorClient:
    """A connection to the router at `address` (``host:port``). Failures are typed, as of the other
    clients."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=client_options())
        self._stub = cluster_grpc.ClusterStub(self._channel)  # type: ignore[no-untyped-call]

    async def drain(
        self, worker_id: str, *, timeout_s: float | None = None
    ) -> AsyncIterator[DrainReport]:
        """Let a worker leave, and report until it has drained or the drain was cancelled.

        timeout_s: how long running requests may stay there; None: the router's setting. A drain
        under way is joined, and goes on where this is left. `NotFound` and `Unavailable` where the
        worker is not up, `Unavailable` where it is lost meanwhile.
        """
        request = cluster.DrainRequest(worker_id=worker_id, timeout_s=timeout_s)
        call = self._stub.Drain(request)
        try:
            async for wire in call:
                yield DrainReport(
                    wire.worker_id,
                    wire.state,
                    wire.running,
                    wire.finished,
                    wire.moved,
                    wire.sessions_resting,
                    wire.sessions_stored,
                    wire.sessions_dropped,
                    wire.elapsed_s,
                    wire.others_serve,
                )
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()

    async def cancel_drain(self, worker_id: str) -> bool:
        """Let a worker that drains stay; False where it does not drain. `Unavailable` where it has
        drained, or is not up."""
        request = cluster.CancelDrainRequest(worker_id=worker_id)
        try:
            response: cluster.CancelDrainResponse = await self._stub.CancelDrain(request)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        return response.was_draining

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
