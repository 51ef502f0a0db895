"""Events on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator

from service.api import sse
from service.api.views import Progress, VideoError


def test_an_event() -> None:
    assert (
        sse.event("progress", Progress(step=1, steps=2).model_dump_json())
        == b'event: progress\ndata: {"step":1,"steps":2}\n\n'
    )
    assert sse.event("x", "{}", "7") == b"id: 7\nevent: x\ndata: {}\n\n"


def test_a_line_break_stays_inside() -> None:
    written = sse.event("error", VideoError(code="a", message="one\ntwo\r\nthree\u2028").model_dump_json())
    assert written.count(b"\n") == 3 and b"\r" not in written


def test_a_stream_is_not_kept_by_proxies() -> None:
    async def events() -> AsyncIterator[bytes]:
        yield sse.COMMENT

    answer = sse.stream(events())
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-accel-buffering"] == "no"
