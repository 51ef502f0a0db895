"""What is killed comes back, what is cancelled stops, and no picture changes by it."""

from __future__ import annotations

import http.client
import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import ServerProcess

TEN: list[dict[str, Any]] = [
    {"prompt": "a red cat", "num_inference_steps": 20 + 4 * i, "scheduler": solver, "seed": 50 + i}
    for i, solver in enumerate(["euler", "euler-ancestral", "ddim", "dpm++2m", "euler"] * 2)
]
LONG: dict[str, Any] = {"prompt": "a dog", "num_inference_steps": 150, "n": 10, "seed": 5}


def progress(server: ServerProcess, job_id: str) -> int:
    return int((server.job(job_id)["progress"] or {"step": 0})["step"])


def under_way(server: ServerProcess, job_ids: list[str]) -> list[str]:
    """Wait until some of the jobs are in the middle; returns those that have not ended."""
    server.until(lambda: any(progress(server, job_id) > 0 for job_id in job_ids))
    return [job_id for job_id in job_ids if server.job(job_id)["finished_at"] is None]


@pytest.mark.parametrize("name", ["onnx_server", pytest.param("torch_server", marks=pytest.mark.slow)])
def test_a_killed_worker_costs_no_picture(request: pytest.FixtureRequest, name: str) -> None:
    server: ServerProcess = request.getfixturevalue(name)
    undisturbed = server.hashes([server.submit(**body) for body in TEN])
    restarts = server.metric("darkroom_worker_restarts_total")
    jobs = server.together(TEN)
    open_jobs, pid = under_way(server, jobs), server.worker.pid
    os.kill(pid, signal.SIGKILL)
    assert open_jobs, "all were done before the worker was killed"
    assert server.hashes(jobs) == undisturbed
    assert {server.job(job_id)["attempts"] for job_id in open_jobs} <= {1, 2}
    assert any(server.job(job_id)["attempts"] == 2 for job_id in open_jobs)
    assert server.worker.pid != pid and server.metric("darkroom_worker_restarts_total") == restarts + 1


def test_a_cancelled_job_stops(onnx_server: ServerProcess) -> None:
    server = onnx_server
    server.settle()

    def steps(use: str) -> float:
        return server.metric("darkroom_steps_total", use=use)

    useful, wasted = steps("useful"), steps("wasted")
    cancelled, kept = server.together([LONG, {**LONG, "num_inference_steps": 20, "n": 1}])
    server.until(lambda: progress(server, cancelled) > 0)
    answer = server.http.delete(f"/v1/jobs/{cancelled}")
    assert answer.json()["state"] == "cancelled"
    server.finished([kept])
    server.settle()
    batches = server.metric("darkroom_stage_seconds_count", stage="denoise")
    server.settle()
    assert server.metric("darkroom_stage_seconds_count", stage="denoise") == batches, "steps are still being run"
    assert 0 < steps("wasted") - wasted < 0.7 * 150 * 10
    assert steps("useful") - useful == 20
    assert server.job(cancelled)["results"] == [] and server.ready()
    assert server.metric("darkroom_jobs_running") == server.metric("darkroom_queue_depth") == 0


def test_a_server_that_ends_or_is_killed_finishes_later(tmp_path: Path, sdxl_folder: Path, sdxl_engines: Path) -> None:
    with ServerProcess(tmp_path / "data", sdxl_folder, sdxl_engines) as server:
        first = server.together(TEN)
        assert under_way(server, first), "all were done before the server was ended"
        worker = server.worker
        assert server.terminate() == 0
        assert not worker.alive and not (server.data / "worker.json").exists()
        assert not list((server.data / "bus").iterdir()), "every process has left the bus"

        server.start()
        second = server.together(TEN)
        under_way(server, second)
        worker = server.worker
        server.kill()
        assert not worker.alive

        server.start()
        undisturbed = server.hashes([server.submit(**body) for body in TEN])
        assert server.hashes(first) == server.hashes(second) == undisturbed
        assert server.terminate() == 0


def test_an_idle_connection_outlives_those_of_clients(onnx_server: ServerProcess) -> None:
    host, port = onnx_server.url.removeprefix("http://").split(":")
    idle_s = 1.0 + (httpx.Limits().keepalive_expiry or 0.0)
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request("GET", "/health/live")
        connection.getresponse().read()
        kept = connection.sock
        time.sleep(idle_s)
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"status":"live","models":[]}')
        assert connection.sock is kept, "it had to connect again"
