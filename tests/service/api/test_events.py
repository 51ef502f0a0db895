"""Waiting for a job: woken by the bus, and not lost without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.api.events import REMEMBERED, JobWatch
from service.api.schema import Progress
from service.errors import Unavailable, UnknownJob
from service.jobs.bus import Bus, Event
from service.jobs.job import JobState, TextToImage
from service.jobs.sqlite import SQLiteStore

REQUEST = TextToImage(
    model="m", prompt="x", width=8, height=8, num_inference_steps=1, guidance_scale=1, scheduler="euler", seed=0
)


@dataclass(frozen=True)
class Scene:
    """A watch that listens, its store, and the other end of its bus."""

    watch: JobWatch
    store: SQLiteStore
    worker: Bus


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    store, own, worker = SQLiteStore(tmp_path / "jobs"), Bus(tmp_path / "bus"), Bus(tmp_path / "bus")
    watch = JobWatch(own, store)
    watch.start()
    yield Scene(watch, store, worker)
    watch.stop()
    for part in (own, worker, store):
        part.close()


@pytest.mark.parametrize("told", [True, False])
async def test_wait_ends_with_the_job_told_or_not(scene: Scene, told: bool) -> None:
    job = scene.store.submit(REQUEST)
    waiting = [asyncio.create_task(scene.watch.wait(job.id, 10)) for _ in range(3)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    scene.store.cancel(job.id)
    if told:
        scene.worker.publish(Event(type="finished", job=job.id))
    assert [one.state for one in await asyncio.gather(*waiting)] == [JobState.CANCELLED] * 3
    assert time.monotonic() - began < (0.8 if told else 3)


async def test_wait_gives_up_and_does_not_know_strangers(scene: Scene) -> None:
    job = scene.store.submit(REQUEST)
    assert (await scene.watch.wait(job.id, 0.05)).state is JobState.QUEUED
    with pytest.raises(UnknownJob):
        await scene.watch.wait("stranger", 1)


async def test_a_store_that_is_away_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    job = scene.store.submit(REQUEST)

    def away(_: str) -> None:
        raise Unavailable("the server does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(scene.store, "get", away)
        waiting = asyncio.create_task(scene.watch.wait(job.id, 20))
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable):
            await scene.watch.wait(job.id, 0.0)
    assert not waiting.done()
    scene.store.cancel(job.id)
    scene.worker.publish(Event(type="finished", job=job.id))
    assert (await waiting).state is JobState.CANCELLED


async def test_progress_is_kept_until_the_end_and_not_for_ever(scene: Scene) -> None:
    scene.worker.publish(Event(type="progress", job="a", step=1, steps=4))
    scene.worker.publish(Event(type="progress", job="a", step=2, steps=4))
    await asyncio.sleep(0.1)
    assert scene.watch.progress("a") == Progress(step=2, steps=4)
    scene.watch.take(Event(type="finished", job="a"))
    assert scene.watch.progress("a") is None
    for number in range(REMEMBERED + 1):
        scene.watch.take(Event(type="progress", job=str(number), step=0, steps=1))
    assert scene.watch.progress("0") is None and scene.watch.progress("1") is not None
