"""One exposition of two processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.jobs.job import JobState, Priority
from service.jobs.store import ClassStats, QueueStats
from service.metrics import SILENT_S, ApiMetrics, WorkerMetrics


def test_both_processes_share_a_family(tmp_path: Path) -> None:
    api, worker, path = ApiMetrics(), WorkerMetrics(), tmp_path / "worker.prom"
    api.jobs.labels("cancelled", "client").inc()
    worker.jobs.labels("completed", "").inc(2)
    worker.stage_seconds.labels("denoise").observe(0.3)
    worker.write(path)
    text = api.exposition(path).decode()
    assert text.count("# TYPE darkroom_jobs_total counter") == 1
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names)) and not any(name.endswith("_created") for name in names)
    assert 'darkroom_jobs_total{outcome="cancelled",reason="client"} 1.0' in text
    assert 'darkroom_jobs_total{outcome="completed",reason=""} 2.0' in text
    assert 'darkroom_stage_seconds_bucket{le="0.5",stage="denoise"} 1.0' in text
    assert api.exposition(path).decode() != "" and text.count("darkroom_jobs_total{") == 2


def test_the_numbers_of_the_store() -> None:
    api = ApiMetrics()

    def value(name: str, **labels: str) -> float | None:
        return api.registry.get_sample_value(f"darkroom_{name}", labels)

    assert value("store_up") == 0 and value("jobs_running") is None
    classes = {Priority.INTERACTIVE: ClassStats(2, 90.0), Priority.BATCH: ClassStats(3, 40.0)}
    api.show_queue(QueueStats(5, 4, 40.0, classes, ended={JobState.EXPIRED: 6, JobState.COMPLETED: 7}), now=100.0)
    assert value("store_up") == 1 and value("jobs_running") == 4
    depths = {name: value("queue_depth", **{"class": name}) for name in ("interactive", "standard", "batch")}
    ages = {name: value("oldest_queued_age_seconds", **{"class": name}) for name in depths}
    assert depths == {"interactive": 2, "standard": 0, "batch": 3}
    assert ages == {"interactive": 10, "standard": 0, "batch": 60}
    ended = {state: value("store_jobs_ended_total", outcome=state) for state in JobState}
    assert ended == {"queued": None, "running": None, "completed": 7, "failed": 0, "cancelled": 0, "expired": 6}
    api.show_queue(None, now=101.0)
    assert value("store_up") == 0 and value("queue_depth", **{"class": "batch"}) is None


def test_names_keep_to_the_conventions(tmp_path: Path) -> None:
    for registry in (ApiMetrics().registry, WorkerMetrics().registry):
        for family in registry.collect():
            assert family.name.startswith("darkroom_") and family.documentation
            assert not family.name.endswith(("_ms", "_mb", "_percent"))


@pytest.mark.parametrize("content", [None, b"", b"not { metrics", b"\xff\xfe"])
def test_an_unreadable_file_costs_only_itself(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "worker.prom"
    if content is not None:
        path.write_bytes(content)
    assert b"darkroom_worker_up 0.0" in ApiMetrics().exposition(path)


def test_a_worker_that_has_fallen_silent_is_left_out(tmp_path: Path) -> None:
    worker, path = WorkerMetrics(), tmp_path / "worker.prom"
    worker.previews.inc()
    worker.write(path)
    assert b"darkroom_previews_total 1.0" in ApiMetrics().exposition(path)
    old = time.time() - SILENT_S - 1
    os.utime(path, (old, old))
    assert b"darkroom_previews_total" not in ApiMetrics().exposition(path)
