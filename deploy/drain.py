"""`eastwest drain`: lets a worker leave, and says how that goes until it is over."""

from __future__ import annotations

from rich.console import Console

from eastwest.errors import Cancelled
from eastwest.operator_client import DrainReport, OperatorClient


async def drain(address: str, worker_id: str, timeout_s: float | None, console: Console) -> None:
    """Drain a worker; `Cancelled` where somebody ended the drain."""
    said = ""
    async with OperatorClient(address) as operator:
        async for report in operator.drain(worker_id, timeout_s=timeout_s):
            if not said and not report.others_serve:
                console.print(
                    f"warning: without {worker_id} no request can be served; they wait in the "
                    f"queue, each until its deadline, for another worker",
                    markup=False,
                )
            if (line := drain_line(report)) != said:
                console.print(line, markup=False)
                said = line
            if report.state == "cancelled":
                raise Cancelled(f"the drain of {worker_id} was cancelled; it serves again")


async def cancel_drain(address: str, worker_id: str, console: Console) -> None:
    """Let a worker that drains stay."""
    async with OperatorClient(address) as operator:
        was = await operator.cancel_drain(worker_id)
    console.print(f"{worker_id} {'goes on serving' if was else 'does not drain'}", markup=False)


def drain_line(report: DrainReport) -> str:
    """A report in one line."""
    moved = f"{report.finished} finished, {report.moved} moved"
    if report.state == "draining":
        return (
            f"{report.worker_id} is draining: {report.running} requests run, {moved}, "
            f"{report.sessions_resting} sessions rest"
        )
    dropped = f", {report.sessions_dropped} not stored" if report.sessions_dropped else ""
    return (
        f"{report.worker_id} is {report.state}: {moved}, {report.sessions_stored} sessions stored"
        f"{dropped}, {report.elapsed_s:.1f} s"
    )
