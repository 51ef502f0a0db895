"""Waiting for a job: woken by the bus, and not lost without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
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
def poll_s() -> float:
    """So long that what a test sees came over the bus."""
    return 20.0


@pytest.fixture
async def scene(tmp_path: Path, poll_s: float, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(events, "POLL_S", poll_s)
    store, own, worker = SQLiteStore(tmp_path / "jobs"), Bus(tmp_path / "bus"), Bus(tmp_path / "bus")
    watch = JobWatch(own, Reader(store, at_once=True))
    watch.start()
    yield Scene(watch, store, worker)
    watch.stop()
    for part in (own, worker, store):
        part.close()


@pytest.mark.parametrize(("told", "poll_s"), [(True, 20.0), (False, 0.5)])
async def test_wait_ends_with_the_job_told_or_not(scene: Scene, told: bool) -> None:
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


@pytest.mark.parametrize("poll_s", [0.05])
async def test_it_is_followed_where_the_bus_is_silent(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.05)
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


@pytest.mark.parametrize("poll_s", [0.1])
async def test_all_who_wait_are_asked_for_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLLED_AT_ONCE", 150)
    jobs, looks, asked = [scene.store.submit(REQUEST) for _ in range(200)], 0, list[int]()
    get, states = scene.store.get, scene.store.states

    def counted_get(job_id: str) -> Job | None:
        nonlocal looks
        looks += 1
        return get(job_id)

    def counted_states(job_ids: Sequence[str]) -> dict[str, JobState]:
        asked.append(len(job_ids))
        return states(job_ids)

    monkeypatch.setattr(scene.store, "get", counted_get)
    monkeypatch.setattr(scene.store, "states", counted_states)
    waiting = [asyncio.create_task(scene.watch.wait(job.id, 1.5)) for job in jobs]
    await asyncio.sleep(0.5)
    scene.store.cancel(jobs[-1].id)
    assert (await waiting[-1]).state is JobState.CANCELLED, "found without the bus, in the second part"
    await asyncio.gather(*waiting)
    assert looks == 400, "each at its start and at its end"
    assert 2 <= len(asked) <= 30 and set(asked[:2]) == {150, 50}
    assert not scene.watch._listeners


@pytest.mark.parametrize("poll_s", [0.05])
async def test_who_waits_outlives_a_store_that_is_away_or_broken(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    job, faults = scene.store.submit(REQUEST), [Unavailable("away"), RuntimeError("a fault of ours")]
    states = scene.store.states

    def failing(job_ids: Sequence[str]) -> dict[str, JobState]:
        if faults:
            raise faults.pop()
        return states(job_ids)

    monkeypatch.setattr(scene.store, "states", failing)
    waiting = asyncio.create_task(scene.watch.wait(job.id, 20))
    await asyncio.sleep(0.3)
    scene.store.cancel(job.id)
    assert (await waiting).state is JobState.CANCELLED
    assert not faults


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
