"""Waiting for a job: woken by the bus, and not lost without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.api import events
from service.api.events import REMEMBERED, Heard, JobWatch
from service.api.reading import Reader
from service.api.views import Progress
from service.errors import Unavailable, UnknownJob
from service.jobs.bus import Bus, Event
from service.jobs.job import Job, JobState, TextToImage
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
    watch = JobWatch(own, Reader(store, at_once=True))
    watch.start()
    yield Scene(watch, store, worker)
    watch.stop()
    for part in (own, worker, store):
        part.close()


@pytest.mark.parametrize("told", [True, False])
async def test_wait_ends_with_the_job_told_or_not(scene: Scene, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_S", 20.0 if told else 0.5)
    job = scene.store.submit(REQUEST)
    waiting = [asyncio.create_task(scene.watch.wait(job.id, 10)) for _ in range(3)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    scene.store.cancel(job.id)
    if told:
        scene.worker.publish(Event(type="finished", job=job.id))
    assert [one.state for one in await asyncio.gather(*waiting)] == [JobState.CANCELLED] * 3
    assert time.monotonic() - began < 15


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


async def shown(updates: AsyncIterator[Job | Heard | None], count: int) -> list[object]:
    """The next so many updates of a stream that say something, the events in short."""
    found: list[object] = []
    async for update in updates:
        if isinstance(update, Job):
            found.append(update.state)
        elif update is not None:
            found.append((update.event.type, update.event.step))
        if len(found) == count:
            break
    return found


async def heard(scene: Scene, job_id: str, count: int, after: str | None = None) -> list[object]:
    """The first updates of a stream."""
    async with aclosing(scene.watch.follow(job_id, after)) as updates:
        return await shown(updates, count)


async def test_a_job_is_followed_from_its_queue_to_its_end(scene: Scene) -> None:
    job = scene.store.submit(REQUEST)
    updates = scene.watch.follow(job.id)
    assert (await shown(updates, 1)) == [JobState.QUEUED]
    (lease,) = scene.store.claim("w", 1, 30)
    for event in (
        Event("progress", job.id, 1, 2),
        Event("preview", job.id, 1, 2, index=0, part=0, preview="a"),
        Event("progress", "another", 1, 2),
        Event("progress", job.id, 2, 2),
    ):
        scene.worker.publish(event)
    told = [("progress", 1), ("preview", 1), ("progress", 2)]
    assert await shown(updates, 4) == [JobState.RUNNING, *told]
    scene.store.complete(lease.id, [])
    scene.worker.publish(Event("finished", job.id))
    assert (await shown(updates, 99))[-1] is JobState.COMPLETED


async def test_it_is_followed_where_the_bus_is_silent(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.05)
    job = scene.store.submit(REQUEST)
    updates = scene.watch.follow(job.id)
    assert await shown(updates, 1) == [JobState.QUEUED]
    assert await anext(updates) is None, "nothing for a while"
    scene.store.cancel(job.id)
    assert await shown(updates, 99) == [JobState.CANCELLED]
    with pytest.raises(UnknownJob):
        await heard(scene, "stranger", 1)


async def test_previews_are_heard_by_who_comes_late(scene: Scene) -> None:
    job = scene.store.submit(REQUEST)
    for part in range(3):
        scene.watch.take(Event("preview", job.id, part, 4, index=0, part=part, preview="a"))
    number = scene.watch.name_of(Heard(Event("progress"), 2))
    previews = [("preview", part) for part in range(3)]
    assert await heard(scene, job.id, 4) == [JobState.QUEUED, *previews]
    assert await heard(scene, job.id, 2, after=number) == [JobState.QUEUED, previews[2]]
    assert await heard(scene, job.id, 4, after="ffff-2") == [JobState.QUEUED, *previews]
    scene.store.cancel(job.id)
    assert await heard(scene, job.id, 99) == [*previews, JobState.CANCELLED]


async def test_many_who_wait_ask_no_more_often_than_few(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.1)
    job, asked = scene.store.submit(REQUEST), 0
    original = scene.store.get

    def get(job_id: str) -> Job | None:
        nonlocal asked
        asked += 1
        return original(job_id)

    monkeypatch.setattr(scene.store, "get", get)
    waiting = [asyncio.create_task(scene.watch.wait(job.id, 1.5)) for _ in range(200)]
    await asyncio.gather(*waiting)
    assert 400 <= asked < 400 + 2 * events.POLLS_A_SECOND * 1.5, "each at the start and at the end, and between"
    assert not scene.watch._listeners and scene.watch._count == 0


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
