"""Which job is next, which is too late, where a job goes on, and what is forgotten: the same on every store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import IdempotencyConflict, QueueFull
from service.jobs.job import Job, JobError, JobState, Lease, Priority, Result, TextToImage
from service.jobs.store import HEAD_START_S, ClassStats, JobStore, Pruned, QueueStats

INTERACTIVE, STANDARD, BATCH = Priority.INTERACTIVE, Priority.STANDARD, Priority.BATCH
ERROR = JobError(code="broken", message="broken")
Picture = Callable[..., TextToImage]


def result(name: str) -> Result:
    return Result(content_sha256=name, media_type="image/png", seed=7, numerics_id="cpu-fp32")


def known(store: JobStore, job_id: str) -> Job:
    job = store.get(job_id)
    assert job is not None
    return job


def claim_one(store: JobStore) -> Lease:
    (lease,) = store.claim("w1", 1, 30)
    return lease


def claimed(store: JobStore, limit: int = 10, **options: Any) -> list[str]:
    return [lease.job.id for lease in store.claim("w1", limit, 30, **options)]


def test_urgent_classes_go_first_and_each_in_its_order(store: JobStore, picture: Picture) -> None:
    ids = {(p, i): store.submit(picture(), priority=p).id for i in range(2) for p in (BATCH, STANDARD, INTERACTIVE)}
    order = [ids[p, i] for p in (INTERACTIVE, STANDARD, BATCH) for i in range(2)]
    assert {p: known(store, ids[p, 0]).priority for p in Priority} == {p: p for p in Priority}
    assert claimed(store, 3) + claimed(store) == order


@pytest.mark.parametrize("slow", [STANDARD, BATCH])
def test_a_job_that_has_waited_its_head_start_is_next(
    store: JobStore, picture: Picture, clock: Any, slow: Priority
) -> None:
    first = store.submit(picture(), priority=slow).id
    clock.now += HEAD_START_S[slow] - 1
    early = store.submit(picture(), priority=INTERACTIVE).id
    clock.now += 2
    late = store.submit(picture(), priority=INTERACTIVE).id
    assert claimed(store) == [early, first, late]


def test_no_stream_of_urgent_jobs_starves_a_batch_job(store: JobStore, picture: Picture, clock: Any) -> None:
    """Two urgent jobs come for each that is claimed, for longer than any batch job may be made to wait."""
    patient = store.submit(picture(), priority=BATCH).id
    for waited_s in range(0, 2000, 50):
        store.submit(picture(), priority=INTERACTIVE)
        store.submit(picture(), priority=INTERACTIVE)
        if known(store, claimed(store, 1)[0]).id == patient:
            assert HEAD_START_S[BATCH] < waited_s < 3 * HEAD_START_S[BATCH]
            return
        clock.now += 50
    pytest.fail("the batch job was never claimed")


def test_a_job_that_comes_back_has_its_old_turn(store: JobStore, picture: Picture) -> None:
    ids = [store.submit(picture(), priority=p).id for p in (STANDARD, STANDARD, INTERACTIVE)]
    assert claimed(store, 2) == [ids[2], ids[0]]
    store.release("w1")
    assert claimed(store) == [ids[2], ids[0], ids[1]]


def test_a_worker_takes_jobs_of_its_models_only(store: JobStore, picture: Picture) -> None:
    names = ["a", "b:c", "a", "é", "b:c"]
    ids = [store.submit(picture(model=name)).id for name in names]
    assert claimed(store, models=[]) == claimed(store, models=["other"]) == []
    assert claimed(store, 1, models=["b:c", "é"]) == [ids[1]]
    assert claimed(store, models=["b:c", "é"]) == [ids[3], ids[4]]
    assert claimed(store) == [ids[0], ids[2]]


def test_a_job_that_nobody_begins_in_time_expires(store: JobStore, picture: Picture, clock: Any) -> None:
    late, other = store.submit(picture(), deadline_s=10), store.submit(picture())
    assert (late.deadline_at, other.deadline_at) == (clock.now + 10, None)
    clock.now += 9.5
    assert store.reap() == 0 and known(store, late.id) == late
    clock.now += 0.5
    assert store.reap() == 0, "it counts what a worker lost"
    ended = late.model_copy(update={"state": JobState.EXPIRED, "finished_at": clock.now})
    assert known(store, late.id) == ended == store.cancel(late.id)
    assert claimed(store) == [other.id]


def test_a_claim_never_begins_a_late_job(store: JobStore, picture: Picture, clock: Any) -> None:
    late = store.submit(picture(), deadline_s=10, priority=INTERACTIVE)
    clock.now += 10
    assert claimed(store) == []
    assert known(store, late.id).state is JobState.EXPIRED


def test_a_job_that_has_begun_may_end_after_its_deadline(store: JobStore, picture: Picture, clock: Any) -> None:
    done, lost = (store.submit(picture(), deadline_s=10) for _ in range(2))
    leases = store.claim("w1", 2, 15)
    clock.now += 20
    assert known(store, done.id).state is JobState.RUNNING
    assert store.complete(leases[0].id, [result("a" * 64)])
    assert store.reap() == 1, "but one that has to begin again cannot"
    assert known(store, lost.id).state is JobState.EXPIRED
    assert not store.complete(leases[1].id, [])


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_deadlines_are_refused(store: JobStore, picture: Picture, seconds: float) -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        store.submit(picture(), deadline_s=seconds)
    assert store.list(1) == []


def test_a_key_covers_class_and_deadline(store: JobStore, picture: Picture, clock: Any) -> None:
    first = store.submit(picture(), "key", priority=BATCH, deadline_s=0.1)
    clock.now += 0.05
    assert store.submit(picture(), "key", priority=BATCH, deadline_s=0.1) == first
    for other in ({"priority": BATCH}, {"deadline_s": 0.1}, {"priority": BATCH, "deadline_s": 0.2}):
        with pytest.raises(IdempotencyConflict):
            store.submit(picture(), "key", **other)
    store.submit(picture(), "plain")
    with pytest.raises(IdempotencyConflict):
        store.submit(picture(), "plain", deadline_s=1.0)


def test_a_checkpoint_outlives_the_worker_and_ends_with_the_job(store: JobStore, picture: Picture) -> None:
    job = store.submit(picture())
    stale = claim_one(store)
    assert store.checkpoint(stale.id, "one") and store.checkpoint(stale.id, "two")
    assert known(store, job.id).checkpoint == "two"
    assert store.referenced(["one", "two"]) == {"two"}
    store.reap("w1")
    lease = claim_one(store)
    assert lease.job.checkpoint == "two"
    assert not store.checkpoint(stale.id, "three") and store.referenced(["three"]) == set()
    assert store.complete(lease.id, [result("picture")])
    assert known(store, job.id).checkpoint is None
    assert not store.checkpoint(lease.id, "four")
    assert store.referenced(["one", "two", "picture", "four"]) == {"picture"}


@pytest.mark.parametrize("end", ["fail", "cancel", "cancel queued", "expire", "lost"])
def test_every_end_lets_go_of_the_checkpoint(store: JobStore, picture: Picture, clock: Any, end: str) -> None:
    job = store.submit(picture(), deadline_s=100)
    lease = claim_one(store)
    store.checkpoint(lease.id, "half")
    if end == "fail":
        store.fail(lease.id, ERROR)
    elif end == "lost":
        for _ in range(3):
            store.reap("w1")
            store.claim("w1", 1, 30)
    else:
        if end != "cancel":
            store.release("w1")
        clock.now += 200
        store.reap() if end == "expire" else store.cancel(job.id)
    assert known(store, job.id).state.final and known(store, job.id).checkpoint is None
    assert store.referenced(["half"]) == set()


def test_stats_by_class(store: JobStore, picture: Picture, clock: Any) -> None:
    began = clock.now
    for model, priority in (("b", BATCH), ("a", INTERACTIVE), ("b", INTERACTIVE), ("a", BATCH), ("a", STANDARD)):
        store.submit(picture(model=model), priority=priority)
        clock.now += 1
    (lease,) = store.claim("w1", 1, 30)
    store.complete(lease.id, [])
    store.fail(store.claim("w1", 1, 30)[0].id, ERROR)
    store.claim("w1", 1, 30)
    assert store.stats() == QueueStats(
        queued=2,
        running=1,
        oldest_queued_at=began,
        classes={BATCH: ClassStats(2, began)},
        models={"a": 1, "b": 1},
        ended={JobState.COMPLETED: 1, JobState.FAILED: 1},
    )


def test_prune_forgets_the_first_to_end(store: JobStore, picture: Picture, clock: Any) -> None:
    jobs = [store.submit(picture(), f"key {i}") for i in range(5)]
    leases = store.claim("w1", 3, 1000)
    for lease, names in zip(leases[::-1], (["shared", "a"], ["b"], ["shared", "shared"]), strict=True):
        clock.now += 1
        store.complete(lease.id, [result(name) for name in names])
    clock.now += 1
    store.cancel(jobs[3].id)
    assert store.prune(clock.now - 3, 10) == Pruned(0, ()), "a job that ended at that time stays"
    assert store.prune(clock.now, 2) == Pruned(2, ("a", "b"))
    assert [job.id for job in store.list(10)] == [jobs[4].id, jobs[3].id, jobs[0].id]
    assert store.get(jobs[2].id) is None and store.cancel(jobs[2].id) is None
    assert [job.id for job in store.list(10, state=JobState.COMPLETED)] == [jobs[0].id]
    assert store.referenced(["shared", "a", "b"]) == {"shared"}
    assert store.prune(clock.now + 1, -1).jobs == store.prune(clock.now + 1, 0).jobs == 0
    assert store.prune(clock.now + 1, 10) == Pruned(2, ("shared",))
    assert [job.id for job in store.list(10)] == [jobs[4].id], "what has not ended is never forgotten"
    assert store.stats().ended == {JobState.COMPLETED: 3, JobState.CANCELLED: 1}, "but what ended stays counted"
    assert store.submit(picture(), "key 0").id not in {job.id for job in jobs}, "and its key is free"
    assert store.submit(picture(), "key 4").id == jobs[4].id


def test_queue_full(backend: Any, tmp_path: Path, clock: Any, picture: Picture) -> None:
    store = backend.open(tmp_path, clock, 2)
    first = store.submit(picture(), "key")
    store.submit(picture())
    with pytest.raises(QueueFull, match="2"):
        store.submit(picture())
    assert store.submit(picture(), "key") == first, "a repeated submit asks for no room"
    claim_one(store)
    store.submit(picture())
    with pytest.raises(QueueFull):
        store.submit(picture())
    assert store.reap("w1") == 1, "a lost job comes back even to a full queue"
    store.close()


def test_referenced_takes_many_names(store: JobStore) -> None:
    assert store.referenced([]) == store.referenced([f"{i:064x}" for i in range(1000)]) == set()
