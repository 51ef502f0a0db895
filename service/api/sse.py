"""Server-sent events, as text on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

KEEP_ALIVE_S = 15.0
"""Proxies cut what is silent for a minute."""
COMMENT = b":\n\n"
"""What clients pass over."""


def event(name: str, data: str, number: str | None = None) -> bytes:
    """One event.

    Args:
        name: its type.
        data: one line of JSON.
        number: what a client that comes back sends as Last-Event-ID.
    """
    lines = [f"event: {name}", f"data: {data}"]
    if number is not None:
        lines.insert(0, f"id: {number}")
    return ("\n".join(lines) + "\n\n").encode()


def stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """The answer whose body these events are."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
