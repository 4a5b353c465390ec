"""All errors that Salem raises. The class sets the HTTP status and code; the instance has the message.

    SalemError                       500 internal
    ├── InvalidRequest               422 invalid_request       errors[] points to each problem
    ├── Unauthorized                 401 unauthorized
    ├── NotFound                     404 not_found
    ├── Conflict                     409 conflict              already exists, or is in the wrong state
    │   └── LeaseLost                409 lease_lost            another attempt has the job now
    ├── UnsupportedModel             422 unsupported_model     architecture, weights format, remote code
    ├── ModelNotReady                409 model_not_ready
    ├── DeltaRejected                500 delta_rejected        a delta file failed its checks
    ├── EncoderMissing               503 encoder_missing       scopes were made with another scope encoder
    ├── BlobCorrupted                500 blob_corrupted        stored bytes do not match their sha256
    ├── BlobMissing                  500 blob_missing          stored bytes are gone
    ├── EditFailed                   422 edit_failed           the method could not make the edit
    ├── RequirementMissed            422 requirement_missed    a version misses what its request requires
    ├── OverBudget                   422 over_budget           a job needs more memory than it may use
    ├── OutOfMemory                  500 out_of_memory         a job ran out of memory
    ├── TimedOut                     500 timed_out             a job took longer than allowed
    ├── AttemptsExhausted            500 attempts_exhausted    every attempt of a job was interrupted
    ├── TooManyRequests              429 too_many_requests     the queue of a model is full
    ├── Unavailable                  503 unavailable           Redis, SQL, or blobs cannot be reached
    └── Misconfigured                500 misconfigured         the settings cannot work together

Messages are for the client. They name the sample, and contain no server paths, tracebacks, or secrets. A
failed job stores `code`, `message`, and `remedy`. The HTTP layer turns the same three into problem+json (RFC
9457).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from salem.records import JobError

MAX_PLACES = 100  # in one error; its message gives the total


@dataclass(frozen=True)
class Pointer:
    """A problem in a request: a JSON pointer (RFC 6901) and what is wrong there."""

    pointer: str  # "/edits/3/target"
    detail: str


class SalemError(Exception):
    """Base of all errors that Salem raises on purpose."""

    status = 500
    code = "internal"
    retry_after_s: int | None = None  # how long a client should wait before it retries
    title = "Something went wrong on the server"

    def __init__(self, message: str, *, remedy: str | None = None, errors: Sequence[Pointer] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.errors = tuple(errors)

    @property
    def reason(self) -> str:
        """For the log only: the message and the first line of the error that caused it."""
        if self.__cause__ is None:
            return self.message
        cause = str(self.__cause__).strip().partition("\n")[0]
        return f"{self.message} ({type(self.__cause__).__name__}: {cause})"

    def as_job_error(self) -> JobError:
        return JobError(code=self.code, message=self.message, remedy=self.remedy)


class InvalidRequest(SalemError):
    status, code, title = 422, "invalid_request", "The request is not valid"


class Unauthorized(SalemError):
    status, code, title = 401, "unauthorized", "A valid API key is required"


class NotFound(SalemError):
    status, code, title = 404, "not_found", "Not found"


class Conflict(SalemError):
    status, code, title = 409, "conflict", "The request conflicts with the current state"


class LeaseLost(Conflict):
    code, title = "lease_lost", "Another attempt has the job now"


class UnsupportedModel(SalemError):
    status, code, title = 422, "unsupported_model", "This model cannot be hosted"


class ModelNotReady(SalemError):
    status, code, title = 409, "model_not_ready", "The model is not ready yet"


class DeltaRejected(SalemError):
    code, title = "delta_rejected", "A stored delta failed its checks and was not applied"


class EncoderMissing(SalemError):
    status, code, title = 503, "encoder_missing", "The scope encoder of a version is not available"


class BlobCorrupted(SalemError):
    code, title = "blob_corrupted", "A stored file is damaged"


class BlobMissing(SalemError):
    code, title = "blob_missing", "A stored file is gone"


class EditFailed(SalemError):
    status, code, title = 422, "edit_failed", "The edit could not be made"


class RequirementMissed(SalemError):
    status, code, title = 422, "requirement_missed", "The version misses what the request requires"


class OverBudget(SalemError):
    status, code, title = 422, "over_budget", "The job needs more memory than it may use"


class OutOfMemory(SalemError):
    code, title = "out_of_memory", "The job ran out of memory"


class TimedOut(SalemError):
    code, title = "timed_out", "The job took longer than allowed"


class AttemptsExhausted(SalemError):
    code, title = "attempts_exhausted", "Every attempt of the job was interrupted"


class TooManyRequests(SalemError):
    status, code, title = 429, "too_many_requests", "Too many requests are waiting"
    retry_after_s = 1


class Unavailable(SalemError):
    status, code, title = 503, "unavailable", "A part of the service cannot be reached"
    retry_after_s = 5


class Misconfigured(SalemError):
    code, title = "misconfigured", "The settings cannot work together"
