"""The whole server with a supervised worker that is a small script."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

WORKER = """
import os, sys, time
from service.settings import Settings, worker_name
from service.status import WorkerStatus
from service.supervisor import exit_with_parent
from service.jobs.open import open_store
exit_with_parent()
settings = Settings()
store = open_store(settings.store_url)
WorkerStatus(pid=os.getpid(), state="ready", models=("tiny",)).write(settings.worker_status_path)
while True:
    store.claim(worker_name(os.getpid()), 8, 300)
    time.sleep(0.02)
"""
SERVER = """
import sys
from pathlib import Path
import service.api.serve as serve
import service.settings
from service.logs import configure_logging
service.settings.ZOO = Path("/nonexistent")
settings = service.settings.Settings()
original = serve.supervise
serve.supervise = lambda command, *rest, **more: original([sys.executable, "-c", {worker!r}], *rest, **more)
configure_logging("info")
serve.serve(settings)
"""


def until(what: object, timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            if what():  # type: ignore[operator]
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def test_a_killed_worker_is_replaced_and_its_job_returned(tmp_path: Path) -> None:
    from tests.service.api.conftest import write_model

    write_model(tmp_path / "models" / "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DARKROOM_DATA": str(tmp_path / "data"),
        "DARKROOM_PORT": str(port),
        "DARKROOM_MODELS": str(tmp_path / "models"),
    }
    server = subprocess.Popen([sys.executable, "-c", SERVER.format(worker=WORKER)], env=environment)
    status = tmp_path / "data" / "worker.json"
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            until(lambda: http.get("/health/ready").status_code == 200)
            address = http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
            until(lambda: http.get(address).json()["state"] == "running")
            pid = int(httpx.Response(200, content=status.read_bytes()).json()["pid"])
            os.kill(pid, signal.SIGKILL)
            until(lambda: http.get(address).json()["attempts"] == 2)
            until(lambda: http.get("/health/ready").status_code == 200)
            metrics = http.get("/metrics").text
            assert "darkroom_worker_restarts_total 1.0" in metrics and "darkroom_worker_up 1.0" in metrics
            assert "darkroom_jobs_reaped_total 1.0" in metrics
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0
        assert not status.exists(), "the worker was ended and its state removed"
        assert not list((tmp_path / "data" / "bus").iterdir()), "the server left the bus"
    finally:
        server.kill()
        server.wait()
