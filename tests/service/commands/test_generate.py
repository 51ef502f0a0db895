"""``darkroom generate``, ``upscale`` and ``animate``: what they ask for, of whom, and what they write."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.jobs.job import TextToImage
from tests.service.api.conftest import Server, models, server, write_model

__all__ = ["models", "server"]

URL = "http://darkroom.test"


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[httpx.Request]:
    """A server that completes any job at once; the list is what it was asked."""
    asked: list[httpx.Request] = []
    job = {
        "id": "j", "state": "completed", "progress": None, "error": None,
        "request": {"seed": 3, "output_format": "mp4"}, "results": [{"url": "/v1/jobs/j/results/0"}],
    }  # fmt: skip

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=b"clip") if request.method == "GET" else httpx.Response(202, json=job)

    def client(**options: Any) -> httpx.Client:
        return original(**options, transport=httpx.MockTransport(answer))

    original = httpx.Client
    monkeypatch.setattr(httpx, "Client", client)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.png").write_bytes(b"a cat")
    (tmp_path / "hole.png").write_bytes(b"a hole")
    return asked


def sent(wire: list[httpx.Request]) -> dict[str, Any]:
    """What the first request held, without what was left to the server."""
    assert (wire[0].method, wire[0].url.path) == ("POST", "/v1/jobs")
    return {name: value for name, value in json.loads(wire[0].content).items() if value is not None}


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


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


def test_generate_through_a_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.png"
    monkeypatch.setenv("DARKROOM_PORT", server.url.rsplit(":", 1)[1])  # found without being named
    done = CliRunner().invoke(app, ["generate", "a cat", "-o", str(out)])
    assert done.exit_code == 0 and out.read_bytes().startswith(b"\x89PNG"), done.output
    assert server.store.list(1)[0].request.prompt == "a cat"


def test_generate_from_a_picture(wire: list[httpx.Request], tmp_path: Path) -> None:
    options = ["--image", "cat.png", "--mask", "hole.png", "--strength", "0.5", "--lora", "ink:0.7", "--lora", "wool"]
    done = CliRunner().invoke(app, ["generate", "a dog", *options, "-o", "dog.png", "--server", URL])
    assert done.exit_code == 0 and (tmp_path / "dog.png").read_bytes() == b"clip", done.output
    assert sent(wire) == {
        "prompt": "a dog",
        "image": data_url(b"a cat"),
        "mask": data_url(b"a hole"),
        "strength": 0.5,
        "loras": [{"name": "ink", "scale": 0.7}, {"name": "wool"}],
        "output_format": "png",
    }
    assert "authorization" not in wire[0].headers


def test_upscale(wire: list[httpx.Request], tmp_path: Path) -> None:
    options = ["--prompt", "a cat", "--noise", "0", "--steps", "9", "--guidance", "2", "--seed", "3"]
    done = CliRunner().invoke(app, ["upscale", "cat.png", *options, "-o", "large.jpg", "--server", URL])
    assert done.exit_code == 0 and (tmp_path / "large.jpg").read_bytes() == b"clip", done.output
    assert sent(wire) == {
        "task": "upscaling",
        "image": data_url(b"a cat"),
        "prompt": "a cat",
        "noise_level": 0,
        "num_inference_steps": 9,
        "guidance_scale": 2.0,
        "seed": 3,
        "output_format": "jpeg",
    }


def test_animate(wire: list[httpx.Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_API_KEY", "secret")
    options = ["--seconds", "2.5", "--fps", "8", "--motion", "90", "--noise", "0.1", "--min-guidance", "1.5"]
    done = CliRunner().invoke(app, ["animate", "cat.png", *options, "--seed", "3", "--server", URL])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "darkroom-3.mp4").read_bytes() == b"clip" and "darkroom-3.mp4 (4 bytes)" in done.output
    assert sent(wire) == {
        "task": "image-to-video",
        "image": data_url(b"a cat"),
        "seconds": 2.5,
        "fps": 8,
        "motion_bucket_id": 90,
        "noise_aug_strength": 0.1,
        "min_guidance_scale": 1.5,
        "seed": 3,
    }
    assert {request.headers["authorization"] for request in wire} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["animate", "cat.png"], "no server answers at http://127.0.0.1:1"),
        (["animate", "cat.png", "-o", "x.gif"], "cannot write .gif"),
        (["upscale", "cat.png"], "no server answers at http://127.0.0.1:1"),
        (["upscale", "cat.png", "-o", "x.gif"], "cannot write .gif"),
        (["animate", "none.png"], "none.png"),
        (["generate", "x", "--lora", "ink:much"], "'much' is not a number"),
        (["generate", "x", "--image", "cat.png"], "need a server, and none answers at http://127.0.0.1:1"),
        (["generate", "x", "--server", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_made_is_told(
    offline: list[TextToImage], tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "cat.png").write_bytes(b"a cat")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0 and said in done.output and "Traceback" not in done.output
    assert not offline
