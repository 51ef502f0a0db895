"""Readiness, and the metrics of both processes at one address."""

from __future__ import annotations

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

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
    server.painter.paused.set()
    server.http.post("/v1/jobs", json={"prompt": "x"})
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
    assert samples["darkroom_queue_depth",] == 1 and samples["darkroom_oldest_queued_age_seconds",] > 0
    assert samples["darkroom_requests_total", "/v1/jobs", "202"] == 1
    assert samples["darkroom_requests_total", "/v1/jobs/{job_id}", "404"] == 1
    assert samples["darkroom_requests_total", "other", "404"] == 1
    assert samples["darkroom_worker_process_resident_memory_bytes",] > 0
    assert samples["darkroom_api_process_resident_memory_bytes",] > 0
