"""The command as a process for what must be quick, and in this process for the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.jobs.job import TextToImage


def test_help_is_light() -> None:
    code = "import sys, service.cli; print([m for m in ('torch', 'fastapi', 'pydantic', 'httpx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    done = subprocess.run([sys.executable, "-m", "service.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(
        name in done.stdout
        for name in ("serve", "worker", "generate", "upscale", "animate", "jobs", "models", "doctor")
    )


@pytest.mark.parametrize(
    ("store", "said"),
    [("mysql://x", "must be sqlite:///path or redis://"), ("unix:///none/redis.sock", "cannot be reached")],
)
def test_a_store_that_cannot_be_had(
    offline: list[TextToImage], monkeypatch: pytest.MonkeyPatch, store: str, said: str
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("service.logs.configure_logging", lambda _: None)
    monkeypatch.setenv("DARKROOM_STORE", store)
    done = CliRunner().invoke(app, ["serve"])
    assert done.exit_code == 1 and said in done.output and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one model, or say --all"),
        (["tiny", "--all"], "name one model, or say --all"),
        (["huge"], "'huge' is not installed; installed: tiny"),
    ],
)
def test_engines_build_says_what_is_wrong(offline: list[TextToImage], arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["engines", "build", *arguments])
    assert done.exit_code == 1 and said in done.output
