"""Every way in which a request, a transfer or a start can fail, with its status on each surface.

Rooms raise these and nothing else across their borders. One table (`STATUS`) maps an error to its
gRPC status, its HTTP status and whether the same call may succeed when repeated; front ends read
the table and never invent a status of their own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Phase(enum.StrEnum):
    """Where in its life a request was; named in deadline errors and in timings."""

    ADMISSION = "admission"
    QUEUE = "queue"
    RESERVATION = "reservation"
    PREFILL = "prefill"
    TRANSFER = "transfer"
    DECODE = "decode"
    DELIVERY = "delivery"


class ErrorCode(enum.StrEnum):
    """Stable, machine-readable names; what travels on the wire between our own processes."""

    INVALID_ARGUMENT = "invalid_argument"
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    OVERLOADED = "overloaded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"
    STALE_EPOCH = "stale_epoch"
    LEASE_EXPIRED = "lease_expired"
    TRANSFER_FAILED = "transfer_failed"
    INCOMPATIBLE = "incompatible"
    CORRUPT_DATA = "corrupt_data"
    STORE_UNAVAILABLE = "store_unavailable"
    CONFIG = "config"
    MODEL = "model"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Status:
    """How one error looks from outside. `grpc` is the name of a `grpc.StatusCode`."""

    grpc: str
    http: int
    retriable: bool


STATUS: dict[ErrorCode, Status] = {
    ErrorCode.INVALID_ARGUMENT: Status("INVALID_ARGUMENT", 400, retriable=False),
    ErrorCode.NOT_FOUND: Status("NOT_FOUND", 404, retriable=False),
    ErrorCode.TOO_LARGE: Status("RESOURCE_EXHAUSTED", 413, retriable=False),
    ErrorCode.OVERLOADED: Status("RESOURCE_EXHAUSTED", 429, retriable=True),
    ErrorCode.DEADLINE_EXCEEDED: Status("DEADLINE_EXCEEDED", 504, retriable=False),
    ErrorCode.CANCELLED: Status("CANCELLED", 499, retriable=False),
    ErrorCode.UNAVAILABLE: Status("UNAVAILABLE", 503, retriable=True),
    ErrorCode.DRAINING: Status("UNAVAILABLE", 503, retriable=True),
    ErrorCode.STALE_EPOCH: Status("FAILED_PRECONDITION", 409, retriable=True),
    ErrorCode.LEASE_EXPIRED: Status("ABORTED", 409, retriable=True),
    ErrorCode.TRANSFER_FAILED: Status("ABORTED", 502, retriable=True),
    ErrorCode.INCOMPATIBLE: Status("FAILED_PRECONDITION", 409, retriable=False),
    ErrorCode.CORRUPT_DATA: Status("DATA_LOSS", 502, retriable=True),
    ErrorCode.STORE_UNAVAILABLE: Status("UNAVAILABLE", 503, retriable=True),
    ErrorCode.CONFIG: Status("FAILED_PRECONDITION", 500, retriable=False),
    ErrorCode.MODEL: Status("FAILED_PRECONDITION", 500, retriable=False),
    ErrorCode.INTERNAL: Status("INTERNAL", 500, retriable=False),
}


class EastWestError(Exception):
    """Base of all errors of this project.

    `message` names what was wrong and what is allowed, in one line. `phase` is set where the
    error ends a request. `retry_after_s` is a hint for retriable errors, in seconds.
    """

    code: ErrorCode = ErrorCode.INTERNAL

    def __init__(
        self, message: str, *, phase: Phase | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.phase = phase
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> Status:
        return STATUS[self.code]


class InvalidArgument(EastWestError):
    """Input from outside that can never be accepted as it is."""

    code = ErrorCode.INVALID_ARGUMENT


class NotFound(EastWestError):
    """A session, request or model that this deployment does not know."""

    code = ErrorCode.NOT_FOUND


class TooLarge(EastWestError):
    """Input beyond a configured size limit, or more than can be served in the time that it has."""

    code = ErrorCode.TOO_LARGE


class Overloaded(EastWestError):
    """Refused before any work was done; worth retrying after `retry_after_s`."""

    code = ErrorCode.OVERLOADED


class DeadlineExceeded(EastWestError):
    """The request's one deadline passed; `phase` says where."""

    code = ErrorCode.DEADLINE_EXCEEDED


class Cancelled(EastWestError):
    """The client went away or aborted."""

    code = ErrorCode.CANCELLED


class Unavailable(EastWestError):
    """A worker or router that was needed is gone; another attempt may succeed."""

    code = ErrorCode.UNAVAILABLE


class Draining(EastWestError):
    """A worker that leaves takes no work, and gives back what it has; others may take it."""

    code = ErrorCode.DRAINING


class StaleEpoch(EastWestError):
    """A message from or to a former incarnation of a worker."""

    code = ErrorCode.STALE_EPOCH


class LeaseExpired(EastWestError):
    """A reservation that was not renewed in time and has freed itself."""

    code = ErrorCode.LEASE_EXPIRED


class TransferFailed(EastWestError):
    """KV did not arrive complete and intact."""

    code = ErrorCode.TRANSFER_FAILED


class Incompatible(EastWestError):
    """Two peers whose model, KV form or protocol version cannot work together."""

    code = ErrorCode.INCOMPATIBLE


class CorruptData(EastWestError):
    """A checksum or a length that does not hold."""

    code = ErrorCode.CORRUPT_DATA


class StoreUnavailable(EastWestError):
    """The offline store cannot be reached or refuses; serving goes on without it."""

    code = ErrorCode.STORE_UNAVAILABLE


class ConfigError(EastWestError):
    """A setting, flag or file that cannot be used; raised at start."""

    code = ErrorCode.CONFIG


class ModelError(EastWestError):
    """A checkpoint that is absent, truncated, inconsistent or of an unsupported architecture."""

    code = ErrorCode.MODEL


class InternalError(EastWestError):
    """A defect of ours, reported rather than hidden."""

    code = ErrorCode.INTERNAL

    @classmethod
    def caused_by(cls, what: str, error: Exception) -> InternalError:
        """`what` ended by an error that nobody foresaw."""
        return cls(f"{what} failed: {type(error).__name__}: {error}")


BY_CODE: dict[ErrorCode, type[EastWestError]] = {
    cls.code: cls for cls in EastWestError.__subclasses__()
}


def error_from(code: ErrorCode, message: str, *, phase: Phase | None = None) -> EastWestError:
    """The error that a peer process reported as `code`."""
    return BY_CODE[code](message, phase=phase)
