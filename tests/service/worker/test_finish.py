"""Outcomes: written in order, whatever the store or the disk do."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import Unavailable
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus
from service.jobs.job import Job, JobState
from service.jobs.sqlite import SQLiteStore
from service.metrics import WorkerMetrics
from service.worker import finish
from service.worker.finish import Finisher
from service.worker.flight import ActiveJob, Seat
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.runner import Runner
from tests.support.rig import make_request


class Desk:
    """A finisher, and a store with jobs that were claimed."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.store, self.artifacts = SQLiteStore(folder / "jobs.sqlite3"), ArtifactStore(folder / "artifacts")
        self.bus, self.listener, self.metrics = Bus(folder / "bus"), Bus(folder / "bus"), WorkerMetrics()
        self.finisher = Finisher(self.store, self.bus, self.artifacts, self.metrics)

    def claim(self, n: int = 1, **changes: Any) -> tuple[ActiveJob, list[Seat]]:
        """A job whose pictures are encoded."""
        self.store.submit(make_request(n=n, **changes))
        (lease,) = self.store.claim("worker", 1, 30.0)
        job = ActiveJob(lease, [None] * n)
        request = lease.job.request
        pictures = [Picture(request, request.seed + i, 0.0, self.loaded, self.loaded.strict) for i in range(n)]
        Runner().encode(pictures)
        for picture in pictures:
            assert picture.row is not None
            picture.pixels, picture.row.line = pixels(0), len(picture.row.plan.lines)
        return job, [Seat(job, i, picture) for i, picture in enumerate(pictures)]

    def get(self, job: ActiveJob) -> Job:
        found = self.store.get(job.id)
        assert found is not None
        return found

    def jobs_total(self, outcome: str, reason: str = "") -> float:
        return self.metrics.registry.get_sample_value(
            "darkroom_jobs_total", {"outcome": outcome, "reason": reason}
        ) or 0.0  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, loaded: LoadedModel) -> Any:
    desk = Desk(tmp_path, loaded)
    yield desk
    desk.finisher.close()
    for part in (desk.bus, desk.listener, desk.store):
        part.close()


def pixels(level: int) -> Any:
    return np.full((32, 32, 3), level, np.uint8)


def test_the_last_picture_completes_the_job(desk: Desk) -> None:
    job, seats = desk.claim(n=2, output_format="webp")
    seats[1].piece.pixels = pixels(20)
    desk.finisher.finish(seats[1]).result(10)
    assert desk.get(job).state is JobState.RUNNING and not job.ended and not desk.listener.receive(0)
    desk.finisher.finish(seats[0]).result(10)
    done = desk.get(job)
    assert done.state is JobState.COMPLETED and job.ended
    assert [(r.seed, r.media_type, r.numerics_id) for r in done.results] == [
        (7, "image/webp", desk.loaded.strict.id),
        (8, "image/webp", desk.loaded.strict.id),
    ]
    assert desk.artifacts.open(done.results[0].content_sha256) != desk.artifacts.open(done.results[1].content_sha256)
    assert [(event.type, event.job) for event in desk.listener.receive(1)] == [("finished", job.id)]
    assert desk.jobs_total("completed") == 1
    assert desk.metrics.registry.get_sample_value("darkroom_steps_total", {"use": "useful"}) == 8


def test_outcomes_are_written_in_the_order_of_the_calls(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, order = threading.Event(), []
    original = desk.store.complete

    def complete(lease_id: str, results: Any) -> bool:
        assert gate.wait(10)
        order.append(lease_id)
        return original(lease_id, results)

    monkeypatch.setattr(desk.store, "complete", complete)
    claimed = [desk.claim(seed=seed) for seed in range(4)]
    futures = [desk.finisher.finish(seats[0]) for _, seats in claimed]
    assert not any(future.done() for future in futures), "the loop does not wait for the store"
    gate.set()
    desk.finisher.close()
    assert order == [job.lease.id for job, _ in claimed] and all(future.done() for future in futures)


def test_a_failure(desk: Desk) -> None:
    job, _ = desk.claim()
    desk.finisher.fail(job, "denoise_failed", "why").result(10)
    error = desk.get(job).error
    assert error is not None and (error.code, error.message) == ("denoise_failed", "why")
    assert job.ended and desk.jobs_total("failed", "denoise_failed") == 1
    assert [event.type for event in desk.listener.receive(1)] == ["finished"]


def test_a_picture_that_cannot_be_stored_fails_its_job(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job, seats = desk.claim(n=2)
    original, full = desk.artifacts.put, [True, False]

    def put(content: bytes) -> str:
        if full.pop(0):
            raise OSError("no space left on device")
        return original(content)

    monkeypatch.setattr(desk.artifacts, "put", put)
    for seat in seats:
        desk.finisher.finish(seat).result(10)
    error = desk.get(job).error
    assert error is not None and (error.code, error.message) == ("storage_failed", "no space left on device")
    assert job.ended and desk.jobs_total("completed") == 0


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_a_lease_that_is_gone_counts_nothing(desk: Desk, end: str) -> None:
    job, seats = desk.claim()
    desk.store.cancel(job.id)
    if end == "finish":
        desk.finisher.finish(seats[0]).result(10)
    else:
        desk.finisher.fail(job, "x", "y").result(10)
    assert desk.get(job).state is JobState.CANCELLED and job.ended
    assert desk.jobs_total("completed") == desk.jobs_total("failed", "x") == 0


def unavailable(*_: object) -> bool:
    raise Unavailable("locked")


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_an_outcome_waits_for_a_store_that_is_away(desk: Desk, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    job, seats = desk.claim()
    with monkeypatch.context() as away:
        away.setattr(desk.store, "complete", unavailable)
        away.setattr(desk.store, "fail", unavailable)
        future = desk.finisher.finish(seats[0]) if end == "finish" else desk.finisher.fail(job, "x", "y")
        with pytest.raises(TimeoutError):
            future.result(0.3)
        assert not job.ended
    future.result(10)
    assert job.ended and desk.get(job).state is (JobState.COMPLETED if end == "finish" else JobState.FAILED)
    assert desk.jobs_total("completed") + desk.jobs_total("failed", "x") == 1


def test_a_lease_that_is_lost_while_an_outcome_waits(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job, seats = desk.claim()
    with monkeypatch.context() as away:
        away.setattr(desk.store, "complete", unavailable)
        future = desk.finisher.finish(seats[0])
        desk.store.cancel(job.id)
    future.result(10)
    assert job.ended and desk.get(job).state is JobState.CANCELLED and desk.jobs_total("completed") == 0


@pytest.mark.parametrize("closing", [False, True])
def test_the_wait_for_a_store_has_an_end(desk: Desk, monkeypatch: pytest.MonkeyPatch, closing: bool) -> None:
    monkeypatch.setattr(finish, "GIVE_UP_S", 1e9 if closing else 0.0)
    job, seats = desk.claim()
    with monkeypatch.context() as away:
        away.setattr(desk.store, "complete", unavailable)
        future = desk.finisher.finish(seats[0])
        if closing:
            desk.finisher.close()
        future.result(10)
    assert job.ended and desk.get(job).state is JobState.RUNNING
    assert desk.store.reap("worker") == 1
    assert desk.get(job).state is JobState.QUEUED
