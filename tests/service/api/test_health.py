"""Readiness, and the metrics of both processes at one address."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.errors import Unavailable
from service.jobs.store import QueueStats
from service.metrics import WorkerMetrics
from tests.service.api.conftest import Server


def test_ready_follows_the_worker(server: Server) -> None:
    assert server.http.get("/health/live").json()["status"] == "live"
    assert server.http.get("/health/ready").status_code == 503
    server.ready("starting")
    assert "starting" in server.http.get("/health/ready").json()["error"]["message"]
    server.ready()
    assert server.http.get("/health/ready").json() == {"status": "ready", "models": ["tiny"]}
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    server.ready(pid=child.pid)
    assert "has died" in server.http.get("/health/ready").json()["error"]["message"]
    server.settings.worker_status_path.write_text("{")
    assert server.http.get("/health/ready").json()["error"]["code"] == "not_ready"


def test_metrics_of_both_processes(server: Server) -> None:
    server.painter.pause()
    server.http.post("/v1/jobs", json={"prompt": "x", "priority": "batch"})
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    server.http.delete(address)
    server.http.get("/v1/jobs/unknown-1")
    server.http.get("/no/such/page")
    worker = WorkerMetrics()
    worker.jobs.labels("completed", "").inc(3)
    worker.batch_lanes.labels("denoise").observe(4)
    worker.write(server.settings.worker_metrics_path)
    text = server.http.get("/metrics").text
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["darkroom_jobs_total", "completed", ""] == 3
    assert samples["darkroom_batch_lanes_count", "denoise"] == 1
    assert samples["darkroom_store_up",] == 1
    assert samples["darkroom_queue_depth", "batch"] == 1 and samples["darkroom_queue_depth", "standard"] == 0
    assert samples["darkroom_oldest_queued_age_seconds", "batch"] > 0
    assert samples["darkroom_oldest_queued_age_seconds", "standard"] == 0
    assert samples["darkroom_store_jobs_ended_total", "cancelled"] == 1
    assert samples["darkroom_requests_total", "/v1/jobs", "202"] == 2
    assert samples["darkroom_requests_total", "/v1/jobs/{job_id}", "404"] == 1
    assert samples["darkroom_requests_total", "other", "404"] == 1
    assert samples["darkroom_worker_process_resident_memory_bytes",] > 0
    assert samples["darkroom_api_process_resident_memory_bytes",] > 0


def test_metrics_while_the_store_is_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> QueueStats:
        raise Unavailable("the server does not answer")

    assert "darkroom_queue_depth{" in server.http.get("/metrics").text
    monkeypatch.setattr(server.store, "stats", away)
    answer = server.http.get("/metrics")
    assert answer.status_code == 200 and "darkroom_store_up 0.0" in answer.text
    assert "darkroom_queue_depth{" not in answer.text and "darkroom_jobs_running 0" not in answer.text
    assert "darkroom_requests_total{" in answer.text
    monkeypatch.undo()
    assert "darkroom_store_up 1.0" in server.http.get("/metrics").text
