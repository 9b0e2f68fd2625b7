"""Typed errors as HTTP: status, headers and body, in OpenAI's shape. Pure."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from eastwest.errors import EastWestError, ErrorCode
from eastwest.types import SamplingParams
from router.http.answers import event, to_json
from router.http.fields import Refused

# Messages of the edge begin with the field that they are about; these are fields of bodies, too.
_PARAMS = {f.name for f in dataclasses.fields(SamplingParams)}
_PARAMS |= {"model", "priority", "request_id", "slo_ttft_s", "slo_tpot_s"}


def error_object(error: EastWestError) -> dict[str, Any]:
    """The body of an error. code is `eastwest.errors.ErrorCode`; phase and retriable are ours."""
    told: dict[str, Any] = {
        "message": error.message,
        "type": _kind(error),
        "param": _param(error),
        "code": error.code.value,
        "retriable": error.status.retriable,
    }
    if error.phase is not None:
        told["phase"] = error.phase.value
    return {"error": told}


def error_body(error: EastWestError) -> bytes:
    return to_json(error_object(error))


def error_event(error: EastWestError) -> bytes:
    """The event that ends a stream which has begun. No [DONE] follows it."""
    return b"event: error\n" + event(error_object(error))


def error_headers(error: EastWestError) -> list[tuple[str, str]]:
    """What goes with the status: whether and when to try again, in words that clients know."""
    headers = [
        ("content-type", "application/json"),
        # OpenAI's own clients go by this rather than by the status.
        ("x-should-retry", str(error.status.retriable).lower()),
    ]
    if error.status.retriable and error.retry_after_s is not None:
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
        headers.append(("retry-after-ms", str(max(1, round(error.retry_after_s * 1000)))))
    return headers


def _param(error: EastWestError) -> str | None:
    if isinstance(error, Refused):
        return error.param
    first = error.message.partition(" ")[0]
    return first if first in _PARAMS else None


def _kind(error: EastWestError) -> str:
    if error.code is ErrorCode.OVERLOADED:
        return "rate_limit_error"
    return "invalid_request_error" if error.status.http < 500 else "server_error"
