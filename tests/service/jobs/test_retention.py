"""What is deleted, on both stores, and what never is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.jobs.artifacts import ArtifactStore
from service.jobs.job import ImageToImage, Result, TextToImage
from service.jobs.retention import Deleted, Retention, collect
from service.jobs.store import JobStore

Picture = Callable[..., TextToImage]
DAY = 86400.0


@pytest.fixture
def scene(store: JobStore, tmp_path: Path, picture: Picture, clock: Any) -> Scene:
    clock.now = time.time() - 30 * DAY
    return Scene(store, tmp_path / "artifacts", picture, clock)


class Scene:
    """A store, its artifacts, and jobs that ended some days ago."""

    def __init__(self, store: JobStore, folder: Path, picture: Picture, clock: Any) -> None:
        self.store, self.folder, self.picture, self.clock = store, folder, picture, clock
        self.artifacts = ArtifactStore(folder)
        self.now = time.time()

    def put(self, content: bytes, days_ago: float) -> str:
        """An artifact of that age."""
        name = self.artifacts.put(content)
        at = self.now - days_ago * DAY
        os.utime(self.folder / name[:2] / name, (at, at))
        return name

    def job(self, days_ago: float, *contents: bytes) -> str:
        """A job that ended then with these pictures."""
        self.clock.now = self.now - days_ago * DAY
        job = self.store.submit(self.picture())
        (lease,) = self.store.claim("w1", 1, 30)
        names = [self.put(content, days_ago) for content in contents]
        results = [Result(content_sha256=name, media_type="image/png", seed=7, numerics_id="x") for name in names]
        assert self.store.complete(lease.id, results)
        return job.id

    def redrawing(self, days_ago: float, content: bytes) -> str:
        """A job accepted then that begins from this picture."""
        self.clock.now = self.now - days_ago * DAY
        fields = self.picture().model_dump(exclude={"task"})
        return self.store.submit(ImageToImage(**fields, image=self.put(content, days_ago), strength=0.5)).id

    def collect(self, **retention: Any) -> Deleted:
        self.clock.now = self.now
        return collect(self.store, self.artifacts, Retention(**retention), lambda: self.now)

    def left(self) -> set[bytes]:
        return {self.artifacts.open(found.name) for found in self.artifacts.list()}


def test_old_jobs_go_with_their_artifacts(scene: Scene) -> None:
    for days_ago in (20, 10, 5):
        scene.job(days_ago, b"%d" % days_ago, b"shared")
    assert scene.collect(max_age_s=8 * DAY) == Deleted(jobs=2, artifacts=2, bytes=4, bytes_left=7)
    assert scene.left() == {b"5", b"shared"}
    assert len(scene.store.list(10)) == 1
    assert scene.collect(max_age_s=8 * DAY) == Deleted(jobs=0, artifacts=0, bytes=0, bytes_left=7)
    assert scene.collect(max_age_s=1 * DAY).jobs == 1 and scene.left() == set()


def test_what_nobody_refers_to_goes_and_what_somebody_will_stays(scene: Scene) -> None:
    """A worker that was killed leaves an artifact; one that is at work has put what it will refer to in a moment."""
    scene.put(b"orphan", days_ago=1)
    scene.put(b"just put", days_ago=0.01)
    job = scene.job(1, b"result")
    running = scene.store.submit(scene.picture())
    (lease,) = scene.store.claim("w1", 1, 30)
    scene.store.checkpoint(lease.id, scene.put(b"half", days_ago=1))
    assert scene.collect(max_age_s=None) == Deleted(jobs=0, artifacts=1, bytes=6, bytes_left=18)
    assert scene.left() == {b"just put", b"result", b"half"}
    assert {found.id for found in scene.store.list(9)} == {job, running.id}
    scene.store.complete(lease.id, [])
    assert scene.collect(max_age_s=None).artifacts == 1, "a checkpoint ends with its job"
    assert scene.collect(max_age_s=None, grace_s=0.0).artifacts == 1, "and without a grace nothing is young"
    assert scene.left() == {b"result"}


def test_an_input_stays_as_long_as_its_job(scene: Scene) -> None:
    """However long the job waits, and after its end until it is deleted; with the control: an input of no job."""
    job = scene.redrawing(20, b"input")
    scene.put(b"of no job", days_ago=20)
    assert scene.collect(max_age_s=8 * DAY, max_bytes=0).artifacts == 1 and scene.left() == {b"input"}
    scene.clock.now = scene.now - 10 * DAY
    scene.store.cancel(job)
    assert scene.collect(max_age_s=11 * DAY).jobs == 0 and scene.left() == {b"input"}
    assert scene.collect(max_age_s=8 * DAY) == Deleted(jobs=1, artifacts=1, bytes=5, bytes_left=0)


def test_files_of_a_deleted_job_go_in_the_next_round(scene: Scene) -> None:
    scene.store.delete(scene.job(1, b"result"))
    scene.store.delete(scene.redrawing(1, b"input"))
    scene.store.delete(scene.job(0, b"young"))
    assert scene.collect(max_age_s=None) == Deleted(jobs=0, artifacts=2, bytes=11, bytes_left=5)
    assert scene.left() == {b"young"}


def test_previews_go_after_the_grace(scene: Scene) -> None:
    """No job refers to a preview; whoever was told of it on the bus has an hour to fetch it."""
    scene.put(b"old preview", days_ago=0.05)
    scene.put(b"preview", days_ago=0.03)
    assert scene.collect(max_age_s=None).artifacts == 1
    assert scene.left() == {b"preview"}


def test_the_first_to_end_go_until_the_rest_fits(scene: Scene) -> None:
    ids = [scene.job(days_ago, b"%03d" % days_ago * 100) for days_ago in range(60, 0, -1)]
    assert scene.collect(max_age_s=None, max_bytes=18_000).jobs == 0
    done = scene.collect(max_age_s=None, max_bytes=14_000)
    assert 8_000 < done.bytes_left <= 14_000, "in parts, so it may be a little less"
    assert done.bytes_left + done.bytes == 18_000 and done.jobs == done.artifacts
    assert {job.id for job in scene.store.list(300)} == set(ids[done.jobs :])


def test_a_limit_never_deletes_what_is_young(scene: Scene) -> None:
    scene.job(0, b"new")
    assert scene.collect(max_age_s=0.0, max_bytes=0) == Deleted(jobs=0, artifacts=0, bytes=0, bytes_left=3)
    assert scene.left() == {b"new"}


def test_bytes_that_a_new_job_has_again_outlive_the_old_job(scene: Scene) -> None:
    scene.job(20, b"same")
    scene.job(0, b"same")
    assert scene.collect(max_age_s=8 * DAY).jobs == 1
    assert scene.left() == {b"same"}


@pytest.mark.parametrize("name", ["max_age_s", "max_bytes", "grace_s"])
def test_negative_limits_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1"):
        Retention(**{name: -1})
