"""Pages of jobs, and the place of one in the queue: the same on every store."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import product
from typing import Any, get_args

import pytest

from service.errors import UnknownJob
from service.jobs.job import ImageToImage, JobState, Priority, Request, Task, TextToImage
from service.jobs.store import HEAD_START_S, JobStore

Picture = Callable[..., TextToImage]


def redrawn(picture: Picture) -> ImageToImage:
    return ImageToImage(**picture().model_dump(exclude={"task"}), image="picture", strength=0.5)


@pytest.fixture
def jobs(store: JobStore, picture: Picture) -> list[str]:
    """Nine jobs in acceptance order: two tasks in turns, and three states."""
    requests: list[Request] = [picture(), redrawn(picture)]
    ids = [store.submit(requests[number % 2]).id for number in range(9)]
    for lease in store.claim("w1", 3, 30):
        store.complete(lease.id, [])
    for job_id in ids[3:6]:
        store.cancel(job_id)
    return ids


def pages(store: JobStore, size: int, **options: Any) -> list[str]:
    """All pages one after the other, each from the last job of the one before."""
    found: list[str] = []
    while page := store.list(size, found[-1] if found else None, **options):
        assert len(page) <= size
        found += [job.id for job in page]
    return found


@pytest.mark.parametrize("tasks", [None, ["image-to-image"], ["text-to-image", "image-to-video"], get_args(Task)])
@pytest.mark.parametrize("oldest_first", [False, True])
def test_pages_hold_each_job_once_and_in_order(
    store: JobStore, jobs: list[str], tasks: Collection[Task] | None, oldest_first: bool
) -> None:
    for state in (None, JobState.COMPLETED, JobState.CANCELLED, JobState.FAILED):
        found = [store.get(job_id) for job_id in jobs]
        wanted = [
            job.id
            for job in found
            if job is not None
            and (state is None or job.state is state)
            and (tasks is None or job.request.task in tasks)
        ]  # fmt: skip
        if not oldest_first:
            wanted.reverse()
        for size in (2, 100):
            assert pages(store, size, state=state, tasks=tasks, oldest_first=oldest_first) == wanted


def test_a_page_begins_after_a_job_that_is_not_on_it(store: JobStore, jobs: list[str]) -> None:
    """A video client pages by its own ids, yet any will do."""
    of_task = store.list(9, after=jobs[4], tasks=["image-to-image"])
    assert [job.id for job in of_task] == [jobs[3], jobs[1]]
    assert [job.id for job in store.list(9, jobs[4], JobState.QUEUED, oldest_first=True)] == jobs[6:]
    assert store.list(9, tasks=[]) == store.list(0, tasks=["image-to-image"]) == store.list(-1, tasks=[]) == []
    for options in ({"oldest_first": True}, {"tasks": ["image-to-image"]}, {"tasks": []}):
        with pytest.raises(UnknownJob, match="nobody"):
            store.list(3, after="nobody", **options)  # type: ignore[arg-type]


def test_a_job_changes_its_page_with_its_state(store: JobStore, picture: Picture) -> None:
    job = store.submit(redrawn(picture))
    options: dict[str, Any] = {"tasks": ["image-to-image"]}
    for state, step in (
        (JobState.QUEUED, lambda: store.claim("w1", 1, 30)),
        (JobState.RUNNING, lambda: store.release("w1")),
        (JobState.QUEUED, lambda: store.claim("w1", 1, 30)),
        (JobState.RUNNING, lambda: store.cancel(job.id)),
        (JobState.CANCELLED, lambda: store.delete(job.id)),
    ):
        found = [one for one in JobState if store.list(9, state=one, **options)]
        assert found == [state]
        step()
    assert store.list(9, **options) == []


def test_the_states_of_many_jobs_are_asked_for_at_once(store: JobStore, jobs: list[str]) -> None:
    expected = dict.fromkeys(jobs[:3], JobState.COMPLETED) | dict.fromkeys(jobs[3:6], JobState.CANCELLED)
    expected |= dict.fromkeys(jobs[6:], JobState.QUEUED)
    assert store.states([*jobs, "nobody"]) == expected == {job_id: store.get(job_id).state for job_id in jobs}  # type: ignore[union-attr]
    assert store.states([]) == {}
    assert len(store.states([*jobs, *(f"{number:032x}" for number in range(1000))])) == len(jobs)


def test_positions_are_the_order_of_claims(store: JobStore, picture: Picture, clock: Any) -> None:
    ids = []
    for _, model, priority in product(range(3), "ab", Priority):
        ids.append(store.submit(picture(model=model), priority=priority).id)
        clock.now += 17
    positions = {job_id: store.position(job_id) for job_id in ids}
    order = [lease.job.id for lease in store.claim("w1", len(ids), 30)]
    assert [positions[job_id] for job_id in order] == list(range(len(ids)))
    assert order != ids, "classes do matter"
    assert {store.position(job_id) for job_id in ids} == {None}, "what runs does not wait"
    assert store.position("nobody") is None


def test_of_two_jobs_with_the_same_turn_the_older_is_first(store: JobStore, picture: Picture, clock: Any) -> None:
    ids = []
    turns = sorted(HEAD_START_S.items(), key=lambda item: -item[1])
    for priority, head_start_s in turns:
        clock.now = 1_000_000.0 - head_start_s
        ids.append(store.submit(picture(), priority=priority).id)
    assert [store.position(job_id) for job_id in ids] == [0, 1, 2]
    assert [lease.job.id for lease in store.claim("w1", 3, 30)] == ids


def test_the_backlog_is_counted_by_model(store: JobStore, picture: Picture) -> None:
    for model, priority in product(("a", "b:c", "a"), Priority):
        store.submit(picture(model=model), priority=priority)
    assert store.stats().models == {"a": 6, "b:c": 3}
    store.claim("w1", 4, 30, ["a"])
    assert store.stats().models == {"a": 2, "b:c": 3}
    store.release("w1")
    assert store.stats().models == {"a": 6, "b:c": 3}
    store.claim("w1", 9, 30, ["a"])
    assert store.stats().models == {"b:c": 3}
