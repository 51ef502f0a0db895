"""``darkroom jobs`` against a real server."""

from __future__ import annotations

import json
import threading

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.jobs.job import JobState
from tests.service.api.conftest import Server, models, server

__all__ = ["models", "server"]


@pytest.fixture(autouse=True)
def _local(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is found without being named."""
    monkeypatch.setenv("DARKROOM_PORT", server.url.rsplit(":", 1)[1])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("service.commands.jobs.POLL_S", 0.02)


def submit(server: Server, prompt: str) -> str:
    return str(server.http.post("/v1/jobs", json={"prompt": prompt}).json()["id"])


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["jobs", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_list_by_pages_and_state(server: Server) -> None:
    server.painter.pause()
    ids = [submit(server, f"prompt {number} {'x' * 60}") for number in range(3)][::-1]
    said = invoke("list")
    assert all(job_id in said for job_id in ids) and "prompt 2" in said and "x" * 50 not in said
    first = invoke("list", "--limit", "2")
    assert ids[1] in first and ids[2] not in first and f"--after {ids[1]}" in first
    assert ids[2] in invoke("list", "--after", ids[1]) and ids[0] not in invoke("list", "--after", ids[1])
    assert invoke("cancel", ids[0]) == f"{ids[0]} cancelled\n"
    assert ids[0] in invoke("list", "--state", "cancelled") and ids[0] not in invoke("list", "--state", "queued")
    assert server.store.list(1)[0].state is JobState.CANCELLED


def test_show_waits_when_told_to(server: Server) -> None:
    server.painter.pause()
    job_id = submit(server, "a cat")
    assert json.loads(invoke("show", job_id))["state"] == "queued"
    threading.Timer(0.2, server.painter.paused.clear).start()
    done = json.loads(invoke("show", job_id, "--follow"))
    assert (done["state"], done["request"]["prompt"], len(done["results"])) == ("completed", "a cat", 1)


@pytest.mark.parametrize("command", ["show", "cancel"])
def test_an_unknown_job_is_told(command: str) -> None:
    done = CliRunner().invoke(app, ["jobs", command, "nobody"])
    assert done.exit_code == 1 and "'nobody' does not exist" in done.output
