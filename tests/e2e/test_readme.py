"""What README tells a newcomer to type, typed: against the shipped model, as `make serve` starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.server import ROOT, ServerProcess

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, holds: str) -> str:
    """The one code block of README in this language that holds this text."""
    (found,) = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if holds in b]
    return str(found)


def typed(command: list[str], server: ServerProcess, folder: Path, script: str) -> str:
    """Run a script of README in ``folder``, as if the server were on the port that README names."""
    port = server.url.rsplit(":", 1)[1]
    environment = {**os.environ, "DARKROOM_PORT": port, "PYTHONPATH": str(ROOT)}
    script = script.replace("http://127.0.0.1:8000", server.url)
    script = script.replace(".venv/bin/darkroom", f"{sys.executable} -m service.cli")
    done = subprocess.run([*command, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_red_apple(path: Path) -> None:
    """Red in the middle, white in the corners."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(float)
    assert pixels.shape == (64, 64, 3)
    red, green, blue = pixels[28:44, 20:44].mean(axis=(0, 1))
    assert red > 120 and red > 1.5 * green and red > 1.5 * blue
    assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].mean() > 240


def test_curl(shipped: ServerProcess, tmp_path: Path) -> None:
    typed(["bash", "-euo", "pipefail", "-c"], shipped, tmp_path, block("sh", "> apple.png"))
    check_red_apple(tmp_path / "apple.png")


def test_the_stock_client(shipped: ServerProcess, tmp_path: Path) -> None:
    typed([sys.executable, "-c"], shipped, tmp_path, block("python", "from openai"))
    check_red_apple(tmp_path / "apple.png")


def test_the_command_line_gives_the_same_picture_with_and_without_a_server(
    shipped: ServerProcess, tmp_path: Path
) -> None:
    script = block("sh", "-o apple.png")
    jobs_before = len(shipped.http.get("/v1/jobs").json()["data"])
    typed(["bash", "-euc"], shipped, tmp_path, script)
    assert len(shipped.http.get("/v1/jobs").json()["data"]) == jobs_before + 1
    served = (tmp_path / "apple.png").read_bytes()
    check_red_apple(tmp_path / "apple.png")
    alike = f"DARKROOM_DATA={shipped.data} DARKROOM_ENGINES=cached DARKROOM_THREADS=1"  # as the server was started
    typed(["bash", "-euc"], shipped, tmp_path, f"export DARKROOM_PORT=1 {alike}; {script}")
    assert (tmp_path / "apple.png").read_bytes() == served
    assert len(shipped.http.get("/v1/jobs").json()["data"]) == jobs_before + 1


@pytest.fixture
def apple(shipped: ServerProcess, tmp_path: Path) -> Path:
    """The folder in which README's reader is by now."""
    typed([sys.executable, "-c"], shipped, tmp_path, block("python", "from openai"))
    return tmp_path


def continued(script: str) -> str:
    """A script of README that goes on from where the client was made."""
    return block("python", "from openai") + script


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.size == (64, 64)


def test_streaming_by_curl(shipped: ServerProcess, tmp_path: Path) -> None:
    typed(["bash", "-euc"], shipped, tmp_path, block("sh", "curl -sN"))
    events = [
        json.loads(line.removeprefix("data: "))
        for line in (tmp_path / "events.txt").read_text().splitlines()
        if line.startswith("data: {")
    ]
    kinds = [event["type"].removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]


def test_streaming_with_the_stock_client(shipped: ServerProcess, tmp_path: Path) -> None:
    typed([sys.executable, "-c"], shipped, tmp_path, continued(block("python", "partial_images=2")))
    for name in ("fox-0.png", "fox-1.png", "fox.png"):
        check_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("command", "language", "holds"),
    [
        (["bash", "-euo", "pipefail", "-c"], "sh", "/v1/images/edits"),
        ([sys.executable, "-c"], "python", "client.images.edit"),
        (["bash", "-euc"], "sh", "--image apple.png"),
    ],
)
def test_edits(shipped: ServerProcess, apple: Path, command: list[str], language: str, holds: str) -> None:
    script = block(language, holds)
    typed(command, shipped, apple, continued(script) if language == "python" else script)
    check_picture(apple / "green.png")
    with Image.open(apple / "green.png") as image:
        red, green, _ = np.asarray(image.convert("RGB")).astype(float)[28:44, 20:44].mean(axis=(0, 1))
    assert green > red, "where the apple was red"


@pytest.mark.skipif(not (ROOT / "models/zoo/emoji-svd").exists(), reason="no model of clips is shipped")
def test_clips(shipped: ServerProcess, apple: Path) -> None:
    bash = ["bash", "-euc"]
    submit, look, fetch, delete = block("sh", "/v1/videos/ID").strip().splitlines()
    video_id = json.loads(typed(bash, shipped, apple, submit))["id"]
    typed([sys.executable, "-c"], shipped, apple, continued(block("python", "create_and_poll")))
    by_client = (apple / "apple.mp4").read_bytes()
    while json.loads(typed(bash, shipped, apple, look.replace("ID", video_id)))["status"] != "completed":
        time.sleep(0.5)
    typed(bash, shipped, apple, f"{fetch.partition('#')[0].replace('ID', video_id)} > curl.mp4")
    typed(bash, shipped, apple, block("sh", "darkroom animate"))
    assert (apple / "curl.mp4").read_bytes() == (apple / "apple.mp4").read_bytes() == by_client
    assert json.loads(typed(bash, shipped, apple, delete.replace("ID", video_id)))["deleted"] is True


def test_the_command_line_looks_around(shipped: ServerProcess, tmp_path: Path) -> None:
    script = block("sh", "darkroom doctor")
    said = typed(["bash", "-euc"], shipped, tmp_path, f"export DARKROOM_DATA={shipped.data} COLUMNS=200; {script}")
    assert "emoji-xl-turbo" in said and f"answers at {shipped.url}" in said and "is ready" in said


def test_jobs(shipped: ServerProcess, tmp_path: Path) -> None:
    submit, look, fetch, cancel = block("sh", "/v1/jobs/ID").strip().splitlines()
    bash = ["bash", "-euc"]
    job_id = json.loads(typed(bash, shipped, tmp_path, submit))["id"]
    shipped.finished([job_id])
    assert json.loads(typed(bash, shipped, tmp_path, look.replace("ID", job_id)))["state"] == "completed"
    fetch = fetch.partition("#")[0].replace("ID", job_id)
    typed(bash, shipped, tmp_path, f"{fetch} > rocket.png")
    with Image.open(tmp_path / "rocket.png") as image:
        assert image.size == (64, 64)
    assert json.loads(typed(bash, shipped, tmp_path, cancel.replace("ID", job_id)))["state"] == "completed"


def in_the_repository(script: str) -> str:
    """A script that names the shipped model as README does, for another folder."""
    return script.replace("models/zoo", str(ROOT / "models" / "zoo"))


def test_from_python(shipped: ServerProcess, tmp_path: Path) -> None:
    typed([sys.executable, "-c"], shipped, tmp_path, in_the_repository(block("python", "import generate, load")))
    check_red_apple(tmp_path / "apple.png")


def test_rows_from_python(shipped: ServerProcess, tmp_path: Path) -> None:
    shown = "\nprint(len(rows), len(pictures), all(row.finished for row in rows))"
    script = in_the_repository(block("python", "import advance")) + shown
    assert typed([sys.executable, "-c"], shipped, tmp_path, script).split() == ["2", "2", "True"]
