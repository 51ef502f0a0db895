"""What every job store must do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import IdempotencyConflict, UnknownJob
from service.jobs.job import Job, JobError, JobState, Lease, Result, TextToImage
from service.jobs.store import MAX_ATTEMPTS, JobStore

RESULT = Result(content_sha256="ab" * 32, media_type="image/png", seed=7, numerics_id="cpu-fp32")
ERROR = JobError(code="out_of_memory", message="no memory for 64 x 64 – é")
Picture = Callable[..., TextToImage]


def claim_one(store: JobStore, worker: str = "w1", lease_s: float = 30.0) -> Lease:
    (lease,) = store.claim(worker, 1, lease_s)
    return lease


def known(store: JobStore, job_id: str) -> Job:
    job = store.get(job_id)
    assert job is not None
    return job


def depth(store: JobStore) -> tuple[int, int, float | None]:
    """Queued and running jobs, and when the oldest queued one was accepted."""
    stats = store.stats()
    return stats.queued, stats.running, stats.oldest_queued_at


def test_ordinary_life(store: JobStore, picture: Picture, clock: Any) -> None:
    job = store.submit(picture(prompt="a \0 lighthouse 🗼"))
    assert job == Job(id=job.id, request=job.request, state=JobState.QUEUED, created_at=clock.now)
    assert job.request == picture(prompt="a \0 lighthouse 🗼")
    assert depth(store) == (1, 0, clock.now)
    clock.now += 2
    lease = claim_one(store, lease_s=30)
    assert lease.expires_at == clock.now + 30
    assert lease.job == job.model_copy(update={"state": JobState.RUNNING, "started_at": clock.now, "attempts": 1})
    assert known(store, job.id) == lease.job
    assert depth(store) == (0, 1, None)
    clock.now += 3
    assert store.complete(lease.id, [RESULT, RESULT])
    ended = {"state": JobState.COMPLETED, "finished_at": clock.now, "results": (RESULT, RESULT)}
    assert known(store, job.id) == lease.job.model_copy(update=ended)
    assert depth(store) == (0, 0, None)


def test_a_submission_that_may_not_wait_is_accepted_or_nothing_happened(store: JobStore, picture: Picture) -> None:
    try:
        job = store.submit(picture(), "key", wait=False)
    except BlockingIOError:
        assert store.list(1) == []
        job = store.submit(picture(), "key")
    assert (
        store.submit(picture(), "key")
        == job
        == claim_one(store).job.model_copy(update={"state": JobState.QUEUED, "started_at": None, "attempts": 0})
    )


def test_a_failure_is_recorded(store: JobStore, picture: Picture) -> None:
    job = store.submit(picture())
    assert store.fail(claim_one(store).id, ERROR)
    failed = known(store, job.id)
    assert (failed.state, failed.error, failed.results) == (JobState.FAILED, ERROR, ())
    assert failed.finished_at is not None


def test_same_key_and_request_is_the_same_job_in_every_state(store: JobStore, picture: Picture) -> None:
    first = store.submit(picture(), "key")
    assert store.submit(picture(), "key") == first
    lease = claim_one(store)
    assert store.submit(picture(), "key") == lease.job
    store.complete(lease.id, [RESULT])
    assert store.submit(picture(), "key") == known(store, first.id)
    assert store.submit(picture(), "other key").id != first.id
    assert store.submit(picture()).id != store.submit(picture()).id


def test_same_key_with_another_request_is_a_conflict(store: JobStore, picture: Picture) -> None:
    store.submit(picture(seed=1), "key")
    with pytest.raises(IdempotencyConflict, match="key"):
        store.submit(picture(seed=2), "key")
    assert store.stats().queued == 1


def test_a_request_that_does_not_survive_storage_is_refused(store: JobStore, picture: Picture) -> None:
    with pytest.raises(ValidationError):
        store.submit(picture(guidance_scale=float("inf")))
    assert store.list(10) == [] and store.stats().queued == 0
    assert store.submit(picture()).state is JobState.QUEUED


@pytest.mark.parametrize("end", ["complete", "fail", "cancel", "reap", "reap and claim"])
def test_a_stale_lease_writes_nothing(store: JobStore, picture: Picture, end: str) -> None:
    job = store.submit(picture())
    lease = claim_one(store)
    if end == "complete":
        assert store.complete(lease.id, [])
    elif end == "fail":
        assert store.fail(lease.id, ERROR)
    elif end == "cancel":
        store.cancel(job.id)
    else:
        assert store.reap("w1") == 1
        if end == "reap and claim":
            claim_one(store, "w2")
    before = known(store, job.id)
    assert not store.complete(lease.id, [RESULT])
    assert not store.fail(lease.id, ERROR)
    assert store.renew([lease.id], 30) == set()
    assert known(store, job.id) == before


def test_a_lease_that_never_was_writes_nothing(store: JobStore, picture: Picture) -> None:
    job = store.submit(picture())
    for made_up in ("", job.id, "nobody's", f"{job.id}.", f"{job.id}.x", "1", "1.", "1.x", "9" * 30 + ".x", "²."):
        assert not store.complete(made_up, [RESULT])
        assert not store.fail(made_up, ERROR)
    assert store.renew([], 30) == set()
    assert known(store, job.id) == job


def test_cancel_in_each_state(store: JobStore, picture: Picture, clock: Any) -> None:
    assert store.cancel("nobody") is None
    queued = store.submit(picture())
    clock.now += 1
    cancelled = store.cancel(queued.id)
    ended = {"state": JobState.CANCELLED, "finished_at": clock.now}
    assert cancelled == known(store, queued.id) == queued.model_copy(update=ended)
    assert store.claim("w1", 10, 30) == []
    running = store.submit(picture())
    claim_one(store)
    stopped = store.cancel(running.id)
    assert stopped is not None and stopped.state is JobState.CANCELLED and stopped.attempts == 1
    done = store.submit(picture())
    store.complete(claim_one(store).id, [RESULT])
    broken = store.submit(picture())
    store.fail(claim_one(store).id, ERROR)
    for job_id in (queued.id, running.id, done.id, broken.id):
        before = known(store, job_id)
        clock.now += 1
        assert store.cancel(job_id) == before == known(store, job_id)


def test_renew_tells_which_leases_are_held(store: JobStore, picture: Picture, clock: Any) -> None:
    for _ in range(3):
        store.submit(picture())
    kept, gone, left_alone = store.claim("w1", 3, 10)
    store.cancel(gone.job.id)
    clock.now += 8
    assert store.renew([kept.id, gone.id, "nobody's"], 10) == {kept.id}
    clock.now += 5
    assert store.reap() == 1
    assert known(store, kept.job.id).state is JobState.RUNNING
    assert known(store, left_alone.job.id).state is JobState.QUEUED


def test_reap_by_expiry(store: JobStore, picture: Picture, clock: Any) -> None:
    early, late = store.submit(picture()), store.submit(picture())
    claim_one(store, "w1", lease_s=10)
    claim_one(store, "w2", lease_s=20)
    clock.now += 9.5
    assert store.reap() == 0
    clock.now += 0.5
    assert store.reap() == 1, "a lease is over at the second it names"
    back = known(store, early.id)
    assert (back.state, back.attempts, back.started_at) == (JobState.QUEUED, 1, None)
    assert known(store, late.id).state is JobState.RUNNING
    assert claim_one(store).job.id == early.id


def test_an_expired_lease_still_counts_until_it_is_reaped(store: JobStore, picture: Picture, clock: Any) -> None:
    job = store.submit(picture())
    lease = claim_one(store, lease_s=10)
    clock.now += 60
    assert store.renew([lease.id], 10) == {lease.id}
    clock.now += 60
    assert store.complete(lease.id, [RESULT])
    assert store.reap() == 0
    assert known(store, job.id).state is JobState.COMPLETED


def test_reap_by_worker_takes_all_of_its_leases_and_no_other(store: JobStore, picture: Picture) -> None:
    for _ in range(3):
        store.submit(picture())
    store.claim("dead", 2, 1000)
    alive = claim_one(store, "alive")
    assert store.reap("nobody") == 0
    assert store.reap("dead") == 2
    assert depth(store) == (2, 1, 1_000_000.0)
    assert store.complete(alive.id, [RESULT])


def test_release_by_a_worker_that_stops_in_order_is_no_attempt(store: JobStore, picture: Picture) -> None:
    jobs = [store.submit(picture()) for _ in range(2)]
    store.claim("stopping", 1, 1000)
    other = claim_one(store, "other")
    assert store.release("stopping") == 1
    assert store.release("stopping") == 0
    back = known(store, jobs[0].id)
    assert (back.state, back.attempts, back.started_at) == (JobState.QUEUED, 0, None)
    assert store.complete(other.id, [RESULT])
    for _ in range(MAX_ATTEMPTS + 1):
        claim_one(store, "stopping")
        store.release("stopping")
    assert known(store, jobs[0].id).state is JobState.QUEUED


def test_a_job_that_takes_its_workers_with_it_fails(store: JobStore, picture: Picture, clock: Any) -> None:
    job = store.submit(picture())
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert known(store, job.id).state is JobState.QUEUED
        assert claim_one(store).job.attempts == attempt
        clock.now += 100
        assert store.reap() == 1
    failed = known(store, job.id)
    assert (failed.state, failed.finished_at) == (JobState.FAILED, clock.now)
    assert failed.error is not None and failed.error.code == "worker_lost"
    assert store.claim("w1", 1, 30) == [] and store.reap() == 0


def test_order_is_that_of_acceptance_even_when_the_clock_goes_back(
    store: JobStore, picture: Picture, clock: Any
) -> None:
    ids = []
    for step in (0, 0, 0.5, -7200, 0, 0.001):
        clock.now += step
        ids.append(store.submit(picture()).id)
    assert ids == sorted(set(ids))
    assert [job.id for job in store.list(10)] == ids[::-1]
    assert [lease.job.id for lease in store.claim("w1", 2, 30)] == ids[:2]
    store.reap("w1")
    assert [lease.job.id for lease in store.claim("w1", 10, 30)] == ids
    assert store.claim("w1", 10, 30) == []


def test_claim_takes_at_most_limit(store: JobStore, picture: Picture) -> None:
    for _ in range(3):
        store.submit(picture())
    assert [len(store.claim("w1", limit, 30)) for limit in (-1, 0, 2, 2, 2)] == [0, 0, 2, 1, 0]


def test_lease_ids_are_long_and_never_the_same(store: JobStore, picture: Picture) -> None:
    for _ in range(20):
        store.submit(picture())
    ids = {lease.id for lease in store.claim("w1", 20, 30)}
    store.reap("w1")
    ids |= {lease.id for lease in store.claim("w1", 20, 30)}
    assert len(ids) == 40 and min(map(len, ids)) >= 32


def test_listing_by_cursor_and_state(store: JobStore, picture: Picture) -> None:
    ids = [store.submit(picture()).id for _ in range(7)][::-1]
    for job_id in ids[1::2]:
        store.cancel(job_id)
    assert [job.id for job in store.list(3)] == ids[:3]
    assert [job.id for job in store.list(3, after=ids[2])] == ids[3:6]
    assert [job.id for job in store.list(3, after=ids[5])] == ids[6:]
    assert store.list(3, after=ids[6]) == store.list(0) == store.list(-1) == []
    assert [job.id for job in store.list(10, state=JobState.CANCELLED)] == ids[1::2]
    assert [job.id for job in store.list(1, after=ids[1], state=JobState.CANCELLED)] == [ids[3]]
    assert [job.id for job in store.list(2, after=ids[1], state=JobState.QUEUED)] == [ids[2], ids[4]]
    with pytest.raises(UnknownJob, match="nobody"):
        store.list(3, after="nobody")


def test_another_opening_sees_the_same_jobs(store: JobStore, backend: Any, tmp_path: Path, picture: Picture) -> None:
    job = store.submit(picture(), "key")
    lease = claim_one(store)
    other = backend.open(tmp_path, lambda: 0.0, 10)
    assert other.get(job.id) == lease.job
    assert other.complete(lease.id, [RESULT])
    assert not store.complete(lease.id, [RESULT])
    other.close()
    other.close()
    assert known(store, job.id).state is JobState.COMPLETED


def test_threads_share_a_store(store: JobStore, picture: Picture) -> None:
    def work(worker: int) -> list[str]:
        done = []
        for index in range(10):
            store.submit(picture(), f"{worker}-{index}")
            for lease in store.claim(f"w{worker}", 1, 30):
                assert store.complete(lease.id, [RESULT])
                done.append(lease.job.id)
        return done

    with ThreadPoolExecutor(8) as pool:
        done = [job_id for part in pool.map(work, range(8)) for job_id in part]
    assert len(done) == len(set(done)) == 80
    assert depth(store) == (0, 0, None)
