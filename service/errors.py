"""The tree of errors. Each has a stable code and the HTTP status that a client sees.

DarkroomError
  InvalidRequest 400     bad field, value or body
    UnknownModel 404
    UnknownJob 404
    IdempotencyConflict 422
  Unauthorized 401
  QueueFull 429
    DeadlineUnmeetable 429
  Unavailable 503        not ready yet, or no worker
  GenerationFailed 500   the job was accepted and failed
  StillRunning 504       the job goes on, the connection does not wait for it
"""

from __future__ import annotations


class DarkroomError(Exception):
    """Something a client is told about.

    Args:
        message: a sentence for people: field, value and limit where there is one.
        param: the request field at fault.
        code: a more precise code than the class's own.
    """

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code


class InvalidRequest(DarkroomError):
    """The request cannot be served as it stands."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class UnknownModel(InvalidRequest):
    """No model of that name is installed."""

    status = 404
    code = "model_not_found"


class UnknownJob(InvalidRequest):
    """No job of that id."""

    status = 404
    code = "job_not_found"


class IdempotencyConflict(InvalidRequest):
    """The idempotency key was used before with another request."""

    status = 422
    code = "idempotency_conflict"


class Unauthorized(DarkroomError):
    """Missing or wrong API key."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class QueueFull(DarkroomError):
    """As many jobs are waiting as the server accepts; try again after ``retry_after_s``."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineUnmeetable(QueueFull):
    """No worker will be free to begin the job within ``deadline_s``: it waits ``wait_s`` as things are."""

    code = "deadline_unmeetable"

    def __init__(self, deadline_s: float, wait_s: float) -> None:
        super().__init__(
            f"deadline_s is {deadline_s:g}, and a job waits {wait_s:.1f} s now", retry_after_s=wait_s - deadline_s
        )
        self.param = "deadline_s"


class DeadlineMissed(QueueFull):
    """No worker was free to begin the job within its ``deadline_s``, as had seemed likely when it was accepted."""

    code = "expired"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.param = "deadline_s"


class Unavailable(DarkroomError):
    """The server cannot serve this now."""

    status = 503
    code = "unavailable"


class GenerationFailed(DarkroomError):
    """An accepted job failed."""

    status = 500
    code = "generation_failed"


class StillRunning(DarkroomError):
    """A synchronous request has waited long enough; its job goes on and can be asked for."""

    status = 504
    type = "timeout_error"
    code = "still_running"
