"""The services of docker-compose.yml as processes of a fresh environment: they find each other and are watched."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.service.jobs.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
EXTRAS = {"api": "redis,s3", "worker-cpu": "redis,s3,worker"}
"""What the Dockerfile installs for each image, without the codecs."""
READY_S = 600.0
"""The first start exports the shipped models."""


def install(folder: Path, extras: str) -> Path:
    """The folder of commands of a new environment with what the Dockerfile installs for an image."""
    sources = folder / "sources"
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, sources / name)
    for name in ("kernels", "models", "engines", "service"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--constraint", sources / "constraints.txt"]
    subprocess.run([*pip, f"{sources}[{extras}]"], check=True)
    shutil.rmtree(sources)
    return folder / "venv/bin"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def service(name: str, commands: Path, folder: Path, redis: str, port: str, **image: str) -> Iterator[httpx.Client]:
    """Run a service until the end of the context; a client of its port, which is ready. ``image``: its environment."""
    told = SERVICES[name]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DARKROOM_", "PYTHON"))}
    given = {key: value.replace("redis://redis:6379/0", redis) for key, value in told["environment"].items()}
    given["DARKROOM_ARTIFACTS"] = f"{folder}{given['DARKROOM_ARTIFACTS']}"
    own = {"DARKROOM_DATA": str(folder / name), "DARKROOM_THREADS": "1", "DARKROOM_PORT": port}
    command = [word.replace("9100", port) for word in told["command"]]
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            [commands / "darkroom", *command],
            env={**environment, **image, **given, **own},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            wait_until_ready(client, process)
            yield client
    except BaseException as error:
        error.add_note((folder / f"{name}.log").read_text()[-4000:])
        raise
    finally:
        process.terminate()
        assert process.wait(60) == 0


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)


def metric_names(text: str) -> set[str]:
    """Names of the families, of those without a sample too."""
    return set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    server = RedisServer(Path(tempfile.mkdtemp(prefix="redis-")), "always")
    yield server.url
    server.remove()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_services_share_the_work_and_export_what_is_watched(tmp_path: Path, redis: str) -> None:
    small, whole = (install(tmp_path / image, extras) for image, extras in EXTRAS.items())
    assert subprocess.run([small / "python", "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 1
    with (
        service("api", small, tmp_path, redis, free_port(), DARKROOM_WORKERS="0") as server,
        service("worker", whole, tmp_path, redis, free_port()) as worker,
    ):
        body = {"prompt": "a red apple 3d", "num_inference_steps": 4}
        jobs = [server.post("/v1/jobs", json={**body, "seed": seed}).json() for seed in range(24)]
        while any(server.get(f"/v1/jobs/{job['id']}").json()["state"] in ("queued", "running") for job in jobs):
            time.sleep(0.2)
        done = [server.get(f"/v1/jobs/{job['id']}").json() for job in jobs]
        assert {job["state"] for job in done} == {"completed"}
        assert all(server.get(job["results"][0]["url"]).content.startswith(b"\x89PNG") for job in done)
        time.sleep(2)  # workers write their metrics once a second
        texts = [client.get("/metrics").text for client in (server, worker)]
    watched = "".join(
        path.read_text() for path in sorted((ROOT / "deploy").rglob("*")) if path.suffix in (".yml", ".json")
    )
    families = metric_names("".join(texts))
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bdarkroom_[a-z0-9_]+", watched)}
    groups = {"darkroom_availability", "darkroom_objective", "darkroom_queue", "darkroom_requests", "darkroom_work"}
    with_its_own_worker = {"darkroom_worker_up", "darkroom_worker_restarts_total"}  # which the api of compose has not
    assert asked - groups - with_its_own_worker <= families
    ended = [
        sum(map(float, re.findall(r'^darkroom_jobs_total\{outcome="completed".*\} (\S+)', t, re.M))) for t in texts
    ]
    assert ended == [0, 24], "the worker made them, and the server had none of its own"
