"""What commands share."""

from __future__ import annotations

import httpx
import pytest
import typer
from typer.testing import CliRunner

from service.cli import app
from service.client import ServerError
from service.commands.terminal import answers, connected
from tests.service.api.conftest import Server, models, server

__all__ = ["models", "server"]


def test_a_setting_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_THREADS", "none")
    done = CliRunner().invoke(app, ["models", "list"])
    assert done.exit_code == 1 and "threads" in done.output and "'none'" in done.output


def test_a_server_is_known_by_its_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers(server.url)
    assert not answers("http://127.0.0.1:1") and not answers("nowhere")
    monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, text="<html>"))
    assert not answers(server.url)


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), ServerError("the queue is full")])
def test_what_a_server_says_is_told_in_a_line(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    with pytest.raises(typer.Exit) as ended, connected("http://x", None):
        raise error
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == f"darkroom: http://x: {error}\n"


def test_control_faults_of_ours_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), connected("http://x", None):
        raise ZeroDivisionError
