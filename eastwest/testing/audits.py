"""What workers in other processes say that they hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc.aio

from eastwest.v1 import worker_pb2, worker_pb2_grpc

_POLL_S = 0.02


async def audit_of(address: str) -> worker_pb2.AuditReport:
    """The report of the worker at ``host:port``."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]
        report: worker_pb2.AuditReport = await stub.Audit(worker_pb2.AuditRequest())
        return report


def held(report: worker_pb2.AuditReport) -> list[str]:
    """Who holds blocks besides sessions, which rest."""
    return [owner for owner in report.owners if not owner.startswith("session")]


async def until_idle(address: str, wait_s: float) -> worker_pb2.AuditReport:
    """The report once the worker serves nothing and holds nothing but resting sessions."""
    async with asyncio.timeout(wait_s):
        while True:
            report = await audit_of(address)
            if not (report.running or report.waiting or report.transfers_open or held(report)):
                return report
            await asyncio.sleep(_POLL_S)


async def assert_clean(addresses: Iterable[str], wait_s: float) -> None:
    """Every worker comes to rest, and no block has leaked on any."""
    for address in addresses:
        report = await until_idle(address, wait_s)
        assert not list(report.findings), f"{address}: {list(report.findings)}"
        assert report.leaked_blocks == 0, f"{address} leaks {report.leaked_blocks} blocks"
