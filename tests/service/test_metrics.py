"""One exposition of two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import ApiMetrics, WorkerMetrics


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
