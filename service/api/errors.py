"""From exceptions to the error envelope: the one place where an error becomes HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.views import ErrorBody, ErrorEnvelope
from service.errors import (
    DarkroomError,
    GenerationFailed,
    InvalidRequest,
    QueueFull,
    StillRunning,
    Unauthorized,
    Unavailable,
)

CODES = {404: "not_found", 405: "method_not_allowed", 408: "too_slow", 413: "body_too_large"}
CLIENT_CLOSED_REQUEST = 499
"""Nobody reads it; it tells in log and metrics that the client went away."""
SHOWN_CHARS = 80
AWAY_RETRY_S = 2
"""When to come back to what is not available: a store that is started again, a worker that loads its models."""


def add_error_handlers(app: FastAPI) -> None:
    """Give every error of the application the same shape."""
    app.add_exception_handler(DarkroomError, _answer_darkroom_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)


def envelope(error: DarkroomError, headers: Mapping[str, str] | None = None, status: int | None = None) -> Response:
    """The answer that tells a client about an error."""
    return Response(error_body(error), status or error.status, headers, media_type="application/json")


def error_body(error: DarkroomError) -> str:
    """The envelope of an error, as JSON in one line."""
    # A body may hold half a surrogate pair, which JSON can write and UTF-8 cannot.
    message = error.message.encode("utf-8", "backslashreplace").decode()
    param = None if error.param is None else error.param.encode("utf-8", "backslashreplace").decode()
    body = ErrorEnvelope(error=ErrorBody(message=message, type=error.type, code=error.code, param=param))
    return body.model_dump_json()


def internal_error() -> Response:
    """The answer to a fault of ours. What it was stays in the log."""
    return envelope(DarkroomError("this is a bug of the server; its log has the details under this x-request-id"))


async def _answer_darkroom_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, DarkroomError)
    headers = {}
    if isinstance(error, QueueFull):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(AWAY_RETRY_S)
    if isinstance(error, GenerationFailed | StillRunning):
        # OpenAI's client repeats a 5xx twice by itself: that would make a failed or slow picture three times.
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return envelope(error, headers)


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)
    return envelope(explain(error.errors()))


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    message = {
        404: f"{where}: there is nothing at this address",
        405: f"{where}: this address does not take this method",
    }.get(error.status_code, str(error.detail))
    refused = InvalidRequest(message, code=CODES.get(error.status_code))
    return envelope(refused, error.headers, error.status_code)


def explain(errors: Sequence[Any]) -> InvalidRequest:
    """One sentence for all faults, field, value and limit named; ``param`` is the first field at fault."""
    if not errors:
        return InvalidRequest("the request cannot be read")
    first = errors[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    sentences = [_sentence(error) for error in errors[:5]]
    return InvalidRequest("; ".join(sentences), param=_field(first), code=_code(first))


def _code(error: Mapping[str, Any]) -> str:
    return {"unknown_field": "unknown_parameter", "missing": "missing_required_parameter"}.get(
        error["type"], "invalid_value"
    )


def _field(error: Mapping[str, Any]) -> str | None:
    if error["type"] in ("unknown_field", "unsupported_field"):
        return str(error["ctx"]["shown"])[1:-1]
    names = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "header")]
    return names[0] if names else None


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] in ("unknown_field", "unsupported_field"):
        return str(error["msg"])
    field = _field(error) or "the body"
    if error["type"] == "missing":
        return f"{field} is required"
    if error["type"] == "picture":  # without what was sent
        return f"{field}: {error['msg']}"
    if error["type"] in ("model_attributes_type", "model_type", "dict_type") and field == "the body":
        return "the body must be a JSON object, sent as application/json"
    value = error["input"]
    text = f"{len(value)} characters" if error["type"].startswith("string_too") else repr(value)
    shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
    message = str(error["msg"])
    return f"{field}: {message[:1].lower()}{message[1:]}, not {shown}"
