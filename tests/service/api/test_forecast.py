"""What is known of the future, from what the worker has published."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from service.api.forecast import FRESH_S, Forecast, Outlook
from service.api.views import Progress
from service.jobs.job import Job, JobState, Priority, TextToImage
from service.jobs.store import ClassStats, QueueStats
from service.status import WorkerStatus
from tests.service.api.conftest import Server

REQUEST = TextToImage(
    model="m", prompt="x", width=8, height=8, num_inference_steps=4, guidance_scale=1, scheduler="euler", seed=0
)


def forecast(folder: Path, pid: int | None = None) -> Forecast:
    path = folder / "worker.json"
    WorkerStatus(pid=pid or os.getpid(), state="ready", seconds_per_job={"m": 2.0}).write(path)
    return Forecast(path)


def test_nothing_is_known_of_what_was_never_measured(tmp_path: Path) -> None:
    assert Forecast(tmp_path / "none").seconds_per_job("m") is None
    assert forecast(tmp_path).seconds_per_job("other") is None
    assert forecast(tmp_path, pid=2**22 + 1).seconds_per_job("m") is None, "the worker is dead"
    job = Job(id="a", request=REQUEST, state=JobState.QUEUED, created_at=0)
    assert Forecast(tmp_path / "none").of(job, 3, None) == Outlook(3, None)


def test_a_job_waits_for_those_that_are_as_urgent(tmp_path: Path) -> None:
    queued = {Priority.INTERACTIVE: 3, Priority.STANDARD: 4, Priority.BATCH: 5}
    stats = QueueStats(12, 1, 0.0, {priority: ClassStats(count, 0.0) for priority, count in queued.items()})
    waits = [forecast(tmp_path).wait_s(stats, "m", priority) for priority in Priority]
    assert waits == [6.0, 14.0, 24.0]


def test_times_to_the_end(tmp_path: Path) -> None:
    found, now = forecast(tmp_path), time.time()
    queued = Job(id="a", request=REQUEST, state=JobState.QUEUED, created_at=now)
    assert found.of(queued, 3, None) == Outlook(3, 8.0)
    running = Job(id="a", request=REQUEST, state=JobState.RUNNING, created_at=now, started_at=now - 30)
    outlook = found.of(running, None, Progress(step=3, steps=9))
    assert outlook.queue_position is None and outlook.eta_s == pytest.approx(60, rel=0.1)
    assert found.of(running, None, None) == found.of(running, None, Progress(step=0, steps=9)) == Outlook(None, None)
    ended = Job(id="a", request=REQUEST, state=JobState.FAILED, created_at=now, finished_at=now)
    assert found.of(ended, None, None) == Outlook(None, None)


def test_the_file_is_read_now_and_then(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "worker.json"
    WorkerStatus(pid=os.getpid(), state="ready", seconds_per_job={"m": 2.0}).write(path)
    found = Forecast(path, lambda: now)
    assert found.seconds_per_job("m") == 2.0
    path.unlink()
    assert found.seconds_per_job("m") == 2.0
    now = FRESH_S
    assert found.seconds_per_job("m") is None


def test_workers_elsewhere_are_known_by_what_they_end(tmp_path: Path) -> None:
    now = 0.0
    found = Forecast(tmp_path / "none", lambda: now)

    def observe(at: float, queued: int, completed: int) -> float | None:
        nonlocal now
        now = at
        ended = {JobState.COMPLETED: completed, JobState.FAILED: 1, JobState.CANCELLED: int(at)}
        found.observe(QueueStats(queued, 1, None, ended=ended))
        return found.seconds_per_job("m")

    assert observe(0, 9, 0) is None, "nothing has ended since"
    assert observe(5, 7, 10) == 0.5
    assert observe(10, 7, 12) == 10 / 12, "over all that was seen while jobs waited"
    assert observe(15, 0, 13) == 10 / 12, "they may have idled"
    assert observe(20, 3, 13) == 10 / 12 and observe(30, 3, 18) == 2.0, "begun anew"
    WorkerStatus(pid=os.getpid(), state="ready", seconds_per_job={"m": 7.0}).write(tmp_path / "none")
    now = 40.0
    assert (found.seconds_per_job("m"), found.seconds_per_job("other")) == (7.0, 2.0), "a worker here says it better"


def test_a_full_queue_says_when_to_come_back(server: Server) -> None:
    server.painter.pause()
    WorkerStatus(pid=os.getpid(), state="ready", seconds_per_job={"tiny": 7.0}).write(
        server.settings.worker_status_path
    )
    body: dict[str, object] = {"prompt": "x"}
    jobs = [server.http.post("/v1/jobs", json={**body, "seed": seed}).json() for seed in range(5)]
    assert [(job["queue_position"], job["eta_s"]) for job in jobs][-1] == (4, 35.0)
    waits = [int(server.http.post("/v1/jobs", json={"prompt": str(i)}).headers["retry-after"]) for i in range(3)]
    assert waits == [8, 16, 24], "one place every 7 s, and a tenth more"
    server.http.delete(f"/v1/jobs/{jobs[0]['id']}")
    refused = server.http.post("/v1/jobs", json={"prompt": "new"})
    assert refused.status_code == 429 and "promised" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 24
    assert 'darkroom_refused_total{reason="queue_full"} 4.0' in server.http.get("/metrics").text


def test_a_deadline_that_cannot_be_met_is_refused_at_once(server: Server) -> None:
    server.painter.pause()
    WorkerStatus(pid=os.getpid(), state="ready", seconds_per_job={"tiny": 7.0}).write(
        server.settings.worker_status_path
    )
    for seed in range(3):
        server.http.post("/v1/jobs", json={"prompt": "x", "seed": seed})
    late = server.http.post("/v1/jobs", json={"prompt": "x", "deadline_s": 20})
    assert late.status_code == 429 and late.json()["error"]["code"] == "deadline_unmeetable"
    assert late.json()["error"]["param"] == "deadline_s" and "21.0 s" in late.json()["error"]["message"]
    assert late.headers["retry-after"] == "1" and len(server.store.list(9)) == 3
    assert server.http.post("/v1/jobs", json={"prompt": "x", "deadline_s": 22}).status_code == 202
    urgent = server.http.post("/v1/jobs", json={"prompt": "x", "deadline_s": 1, "priority": "interactive"})
    assert urgent.status_code == 202, "nobody is before it"
