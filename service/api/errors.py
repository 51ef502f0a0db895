"""From exceptions to the error envelope: the one place where an error becomes HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.schema import ErrorBody, ErrorEnvelope
from service.errors import DarkroomError, GenerationFailed, InvalidRequest, QueueFull, StillRunning, Unavailable

CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
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
    # A body may hold half a surrogate pair, which JSON can write and UTF-8 cannot.
    message = error.message.encode("utf-8", "backslashreplace").decode()
    body = ErrorEnvelope(error=ErrorBody(message=message, type=error.type, code=error.code, param=error.param))
    status = status or error.status
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


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
        return InvalidRequest(
            f"the body is not JSON: {first['ctx']['error']} at byte {first['loc'][-1]}", code="invalid_json"
        )
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
    if error["type"] in ("model_attributes_type", "model_type", "dict_type") and field == "the body":
        return "the body must be a JSON object, sent as application/json"
    value = error["input"]
    text = f"{len(value)} characters" if error["type"].startswith("string_too") else repr(value)
    shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
    message = str(error["msg"])
    return f"{field}: {message[:1].lower()}{message[1:]}, not {shown}"
