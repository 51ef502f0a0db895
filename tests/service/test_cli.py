"""The command as a process for what must be quick, and in this process for the rest."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.jobs.job import TextToImage
from service.settings import Settings
from tests.service.api.conftest import Server, models, server, write_model

__all__ = ["models", "server"]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TextToImage]:
    """No server answers, one model is installed, and a stand-in makes the pictures; the list is what it was asked."""
    write_model(tmp_path / "zoo" / "tiny")
    monkeypatch.setattr("service.settings.ZOO", tmp_path / "zoo")
    monkeypatch.setenv("DARKROOM_PORT", "1")
    monkeypatch.setenv("DARKROOM_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    asked: list[TextToImage] = []

    def generate(settings: Settings, request: TextToImage, on_step: Callable[[int, int], None]) -> bytes:
        del settings
        asked.append(request)
        on_step(1, request.num_inference_steps)
        return b"picture"

    local = types.ModuleType("service.worker.local")
    local.generate = generate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "service.worker.local", local)
    return asked


def test_help_is_light() -> None:
    code = "import sys, service.cli; print([m for m in ('torch', 'fastapi', 'pydantic', 'httpx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    done = subprocess.run([sys.executable, "-m", "service.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in ("serve", "worker", "generate", "models"))


def test_models(offline: list[TextToImage]) -> None:
    done = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "tiny" in done.output and "64x32" in done.output


def test_generate_in_process(offline: list[TextToImage], tmp_path: Path) -> None:
    options = ["--steps", "3", "--guidance", "2.5", "--seed", "9", "--scheduler", "ddim", "--size", "64x32"]
    done = CliRunner().invoke(app, ["generate", "a cat", *options, "--negative", "dog", "-o", "cat.webp"])
    assert done.exit_code == 0, done.output
    (request,) = offline
    assert (request.prompt, request.negative_prompt, request.seed, request.scheduler) == ("a cat", "dog", 9, "ddim")
    assert (request.num_inference_steps, request.guidance_scale, request.height) == (3, 2.5, 32)
    assert request.output_format == "webp" and (tmp_path / "cat.webp").read_bytes() == b"picture"
    CliRunner().invoke(app, ["generate", "a cat", "--seed", "5"])
    assert (tmp_path / "darkroom-5.png").exists()


def test_generate_from_a_folder(offline: list[TextToImage], tmp_path: Path) -> None:
    write_model(tmp_path / "mine")
    assert CliRunner().invoke(app, ["generate", "x", "--model", "mine"]).exit_code == 0
    assert offline[0].model == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "1x1"], "64x64, 64x32"),
        (["--steps", "0"], "num_inference_steps"),
        (["--model", "none"], "installed: tiny"),
        (["-o", "x.gif"], "cannot write .gif"),
        (["--server", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
    ],
)
def test_faults_are_sentences(offline: list[TextToImage], options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["generate", "x", *options])
    assert done.exit_code == 1 and said in done.output and "Traceback" not in done.output
    assert not offline


def test_a_setting_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_THREADS", "none")
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 1 and "threads" in done.output and "'none'" in done.output


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


def test_generate_through_a_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.png"
    monkeypatch.setenv("DARKROOM_PORT", server.url.rsplit(":", 1)[1])  # found without being named
    done = CliRunner().invoke(app, ["generate", "a cat", "-o", str(out)])
    assert done.exit_code == 0 and out.read_bytes().startswith(b"\x89PNG"), done.output
    assert server.store.list(1)[0].request.prompt == "a cat"


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
