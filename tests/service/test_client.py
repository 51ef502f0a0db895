"""The command line's client against a real server."""

from __future__ import annotations

import httpx
import pytest

from service.client import ServerError, run_job
from service.errors import Unavailable
from service.jobs.job import Job, JobError, JobState
from tests.service.api.conftest import Server, models, server

__all__ = ["models", "server"]


def test_it_follows_a_job_to_its_picture(server: Server) -> None:
    server.painter.gate.clear()
    seen: list[tuple[str, int, int | None]] = []

    def on_progress(state: str, step: int, steps: int | None) -> None:
        seen.append((state, step, steps))
        if steps:
            server.painter.gate.set()

    job, content = run_job(server.http, {"prompt": "x", "seed": 4}, on_progress)
    assert job["request"]["seed"] == 4 and content.startswith(b"\x89PNG") and ("running", 5, 10) in seen


def test_it_passes_on_what_the_server_says(server: Server) -> None:
    with pytest.raises(ServerError, match="did you mean 'prompt'"):
        run_job(server.http, {"promt": "x"}, lambda *_: None)
    server.painter.error = JobError(code="bad", message="it broke")
    with pytest.raises(ServerError, match="failed: it broke"):
        run_job(server.http, {"prompt": "x"}, lambda *_: None)


def test_an_expired_job_is_explained(server: Server) -> None:
    server.painter.pause()

    def on_progress(*_: object) -> None:
        server.store.reap()

    with pytest.raises(ServerError, match="expired: no worker was free"):
        run_job(server.http, {"prompt": "x", "deadline_s": 0.05}, on_progress)


def test_it_waits_for_a_store_that_is_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    original, faults = server.store.get, [Unavailable("away"), Unavailable("away")]

    def get(job_id: str) -> Job | None:
        if faults:
            raise faults.pop()
        return original(job_id)

    monkeypatch.setattr(server.store, "get", get)
    _, content = run_job(server.http, {"prompt": "x"}, lambda *_: None)
    assert content.startswith(b"\x89PNG") and not faults


def test_leaving_cancels(server: Server) -> None:
    server.painter.gate.clear()

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(server.http, {"prompt": "x"}, leave)
    assert server.store.list(1)[0].state is JobState.CANCELLED


def test_another_server_is_not_misread() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    with httpx.Client(transport=transport, base_url="http://x") as http, pytest.raises(ServerError, match="no answer"):
        run_job(http, {}, lambda *_: None)
