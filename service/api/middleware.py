"""Around every request: its id, its key, the limits on its body and on its client's patience, its line in the log, its
counters, and the last catch.

Plain ASGI, for Starlette's base class for middleware hides a client's disconnect from the routes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import AWAY_RETRY_S, CLIENT_CLOSED_REQUEST, envelope, internal_error
from service.api.security import ApiKeys
from service.errors import Unauthorized
from service.metrics import ApiMetrics

MAX_BODY_BYTES = 1024 * 1024
"""Of a body that has no pictures in it."""
UPLOADS = frozenset({"/v1/images/edits", "/v1/videos", "/v1/jobs"})
"""Where a body may have pictures."""
MAX_UPLOADS_BYTES = 512 * 2**20
"""All bodies together that are being read or worked on; one more is asked to come back."""
BODY_S = 60.0
"""Time for a client to send its body,"""
PAUSE_S = 20.0
"""and to send or take the next part of anything."""

access = logging.getLogger("darkroom.access")


class RequestMiddleware:
    """The outermost layer but for Starlette's own.

    Args:
        app: what is inside.
        metrics: of this process.
        keys: those that open ``/v1``.
        max_upload_bytes: of one body with pictures.
    """

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, keys: ApiKeys, max_upload_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys
        self._max_upload_bytes = max_upload_bytes
        self._uploads = _Budget(MAX_UPLOADS_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = {"x-request-id": _request_id(scope)}
        limit = self._max_upload_bytes if scope["path"] in UPLOADS else MAX_BODY_BYTES
        scope.setdefault("state", {}).update(answer_headers=headers, body_limit=limit)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(headers)
                if body.unread:  # and may have no end
                    MutableHeaders(scope=message)["connection"] = "close"
            async with asyncio.timeout(PAUSE_S):
                await send(message)

        body = _Body(scope, receive, limit, self._uploads.take)
        self._metrics.open_requests.inc()
        try:
            if self._admitted(scope):
                await self._app(scope, body.receive, send_with_headers)
            else:
                self._metrics.refused.labels("unauthorized").inc()
                refused = Unauthorized("this needs an API key, as Authorization: Bearer KEY")
                await envelope(refused, {"www-authenticate": "Bearer"})(scope, receive, send_with_headers)
        except ClientDisconnect:  # Before all of its body had come: no fault of ours.
            status = CLIENT_CLOSED_REQUEST
        except TimeoutError:  # The client does not take its answer.
            access.warning("answer not taken", extra={"request_id": headers["x-request-id"]})
            raise
        except Exception:
            access.exception("unhandled error", extra={"request_id": headers["x-request-id"]})
            if status:  # The answer has begun: the connection can only be cut.
                raise
            await internal_error()(scope, receive, send_with_headers)
        finally:
            self._uploads.give_back(body.total)
            self._metrics.open_requests.dec()
            self._account(scope, status, time.monotonic() - began, headers)

    def _admitted(self, scope: Scope) -> bool:
        return not scope["path"].startswith("/v1") or self._keys.admit(Headers(scope=scope).get("authorization", ""))

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


class _Budget:
    """Bytes that all requests may hold together."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, count: int) -> bool:
        """Whether there were so many left."""
        fits = count <= self._left
        self._left -= count if fits else 0
        return fits

    def give_back(self, count: int) -> None:
        """They are free again."""
        self._left += count


class _Body:
    """Reads one request's body and refuses more than the limit, announced or not, and less than a client can send."""

    def __init__(self, scope: Scope, receive: Receive, limit: int, take: Callable[[int], bool]) -> None:
        self._receive, self._limit, self._take = receive, limit, take
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        self._announced = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
        self._until = time.monotonic() + BODY_S
        self._complete = announced == "0" and "transfer-encoding" not in headers
        self.total = 0
        """Bytes taken from the budget."""

    @property
    def unread(self) -> bool:
        """Whether there is more to come."""
        return not self._complete

    async def receive(self) -> Message:
        """The next message of the client.

        Raises:
            HTTPException: the body is too large (413) or too slow (408), or there is no room for it (503).
        """
        if self._complete:  # What is left to be heard is the end of the connection.
            return await self._receive()
        too_large = HTTPException(413, f"the body is larger than the limit of {self._limit} bytes")
        if self._announced > self._limit:
            raise too_large
        try:
            async with asyncio.timeout(min(PAUSE_S, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY_S:g} s") from None
        if message["type"] != "http.request":
            return message
        size = len(message.get("body", b""))
        if self.total + size > self._limit:
            raise too_large
        if not self._take(size):
            raise HTTPException(503, "too many uploads at once", {"retry-after": str(AWAY_RETRY_S)})
        self.total += size
        self._complete = not message.get("more_body", False)
        return message


def _request_id(scope: Scope) -> str:
    """The client's id where it can be repeated in a header and a log line, else a new one, which is no secret."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._:/+=-]{1,128}", given) else f"{random.getrandbits(128):032x}"
