"""Around every request: its id, the limit on its body, its line in the log, its counters, and the last catch.

Plain ASGI, for Starlette's base class for middleware hides a client's disconnect from the routes.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import internal_error
from service.metrics import ApiMetrics

MAX_BODY_BYTES = 1024 * 1024

access = logging.getLogger("darkroom.access")


class RequestMiddleware:
    """The outermost layer but for Starlette's own."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = {"x-request-id": _request_id(scope)}
        scope.setdefault("state", {})["answer_headers"] = headers
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(headers)
            await send(message)

        try:
            await self._app(scope, _limited(scope, receive), send_with_headers)
        except Exception:
            access.exception("unhandled error", extra={"request_id": headers["x-request-id"]})
            if status:  # The answer has begun: the connection can only be cut.
                raise
            await internal_error()(scope, receive, send_with_headers)
        finally:
            self._account(scope, status, time.monotonic() - began, headers)

    def _account(self, scope: Scope, status: int, seconds: float, headers: dict[str, str]) -> None:
        # The route's pattern and not the path, which has no bound.
        endpoint = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.request_seconds.labels(endpoint).observe(seconds)
        extra = {
            "request_id": headers["x-request-id"],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 6),
        }
        if "x-darkroom-job" in headers:
            extra["job"] = headers["x-darkroom-job"]
        # Scrapers and load balancers ask every few seconds and would drown the rest.
        quiet = endpoint.startswith("/health") or endpoint == "/metrics"
        access.log(logging.DEBUG if quiet else logging.INFO, "request", extra=extra)


def _request_id(scope: Scope) -> str:
    """The client's id where it can be repeated in a header and a log line, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._:/+=-]{1,128}", given) else uuid.uuid4().hex


def _limited(scope: Scope, receive: Receive) -> Receive:
    """``receive`` that refuses to read more than the limit, announced or not."""
    announced = Headers(scope=scope).get("content-length", "")
    too_large = HTTPException(413, f"the body is larger than the limit of {MAX_BODY_BYTES} bytes")
    total = 0

    async def limited_receive() -> Message:
        nonlocal total
        if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
            raise too_large
        message = await receive()
        if message["type"] == "http.request":
            total += len(message.get("body", b""))
            if total > MAX_BODY_BYTES:
                raise too_large
        return message

    return limited_receive
