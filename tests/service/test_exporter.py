"""A worker's metrics and readiness over HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from service.exporter import export
from service.metrics import WorkerMetrics
from service.status import WorkerStatus


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    server = export(tmp_path / "worker.json", tmp_path / "worker.prom", "127.0.0.1", 0)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def http(exporter: ThreadingHTTPServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{exporter.server_port}") as client:
        yield client


def test_metrics_are_what_the_worker_wrote(http: httpx.Client, tmp_path: Path) -> None:
    assert http.get("/metrics").text == "", "before the worker has written any"
    metrics = WorkerMetrics()
    metrics.steps.labels("useful").inc(7)
    metrics.write(tmp_path / "worker.prom")
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'darkroom_steps_total{use="useful"} 7.0' in answer.text


def test_ready_when_the_worker_says_so_and_lives(http: httpx.Client, tmp_path: Path) -> None:
    codes = [http.get("/health/ready").status_code]
    for pid, state in ((os.getpid(), "starting"), (os.getpid(), "ready"), (2**22 + 1, "ready")):
        WorkerStatus(pid=pid, state=state).write(tmp_path / "worker.json")  # type: ignore[arg-type]
        codes.append(http.get("/health/ready").status_code)
    assert codes == [503, 503, 200, 503]
    assert http.get("/other").status_code == 404


def test_a_port_that_is_taken_is_told(exporter: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        export(tmp_path / "a", tmp_path / "b", "127.0.0.1", exporter.server_port)
