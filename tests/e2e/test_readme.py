"""What README tells a newcomer to type, typed: against the shipped model, as `make serve` starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.server import ROOT, ServerProcess

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "engines").mkdir()
    with ServerProcess(folder / "data", None, folder / "engines") as server:
        yield server


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
    typed(["bash", "-euo", "pipefail", "-c"], shipped, tmp_path, block("sh", "/v1/images/generations"))
    check_red_apple(tmp_path / "apple.png")


def test_the_stock_client(shipped: ServerProcess, tmp_path: Path) -> None:
    typed([sys.executable, "-c"], shipped, tmp_path, block("python", "from openai"))
    check_red_apple(tmp_path / "apple.png")


def test_the_command_line_gives_the_same_picture_with_and_without_a_server(
    shipped: ServerProcess, tmp_path: Path
) -> None:
    script = block("sh", "darkroom generate")
    jobs_before = len(shipped.http.get("/v1/jobs").json()["data"])
    typed(["bash", "-euc"], shipped, tmp_path, script)
    assert len(shipped.http.get("/v1/jobs").json()["data"]) == jobs_before + 1
    served = (tmp_path / "apple.png").read_bytes()
    check_red_apple(tmp_path / "apple.png")
    typed(["bash", "-euc"], shipped, tmp_path, f"export DARKROOM_PORT=1 DARKROOM_DATA={shipped.data}; {script}")
    assert (tmp_path / "apple.png").read_bytes() == served
    assert len(shipped.http.get("/v1/jobs").json()["data"]) == jobs_before + 1


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
