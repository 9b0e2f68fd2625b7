"""What a request's workers are asked for."""

from __future__ import annotations

from eastwest.clock import seconds
from eastwest.messages import Prefill, Reserve, Reserved
from router.attempt import Attempt
from router.placement import Placement
from router.requests import Request


def reserve_command(
    request: Request, placement: Placement, work_id: str, output: tuple[int, ...], now_ns: int
) -> Reserve:
    """Room for all that is given and may come. output: tokens generated so far."""
    return Reserve(
        request_id=work_id,
        salt=request.salt,
        session_id=request.session_id,
        prompt=request.prompt,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        source=placement.prefill.info.source(),
        timeout_s=seconds(request.deadline_ns - now_ns),
        output=output,
        leave_stored=placement.leave_stored,
    )


def prefill_command(
    request: Request, reserved: Reserved, attempt: Attempt, output: tuple[int, ...], now_ns: int
) -> Prefill:
    """The KV of all that is given, and the next token."""
    return Prefill(
        request_id=attempt.work_id,
        salt=request.salt,
        prompt=request.prompt,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        ticket=reserved.ticket,
        timeout_s=seconds(request.deadline_ns - now_ns),
        output=output,
        meet_tokens=attempt.placement.meet_tokens,
        lender=None if (lender := attempt.placement.lender) is None else lender.info.source(),
    )
