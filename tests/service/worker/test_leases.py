"""Leases beside the loop: a store that hangs holds up nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.jobs.job import JobState, Lease
from service.jobs.sqlite import SQLiteStore
from service.metrics import WorkerMetrics
from service.worker import leases as module
from service.worker.leases import Leases
from tests.support.rig import make_request


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(tmp_path / "jobs.sqlite3")
    yield store
    store.close()


@pytest.fixture
def leases(store: SQLiteStore) -> Iterator[Leases]:
    leases = Leases("worker", store, 30.0, ["tiny-xl"], WorkerMetrics())
    yield leases
    leases.close()


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)


def test_a_claim_takes_what_has_room_and_waits_to_be_told(leases: Leases, store: SQLiteStore) -> None:
    for seed in range(3):
        store.submit(make_request(seed=seed, n=2))
    assert not leases.claim(0) and leases.claimed(10.0) == []
    assert leases.claim(3)  # a claim asks for one job while only one surely has room
    assert not leases.claim(3), "it is under way"
    assert [lease.job.request.seed for lease in leases.claimed(10.0)] == [0, 1]
    assert not leases.claim(50)
    assert leases.claimed(0.2) == [], "it was not told, and has just looked"
    leases.told()
    leases.claim(50)
    assert [lease.job.request.seed for lease in leases.claimed(10.0)] == [2]


def test_leases_are_renewed_and_lost_ones_told_once(
    leases: Leases, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_EVERY_S", 0.0)
    for seed in range(2):
        store.submit(make_request(seed=seed))
    leases.claim(20)
    kept, lost = (lease.id for lease in leases.claimed(10.0))
    (job,) = [job for job in store.list(10) if job.request.seed == 1]
    store.cancel(job.id)
    found: set[str] = set()
    until(lambda: found.update(leases.renew([kept, lost])) or found)
    assert found == {lost}


def test_a_store_that_hangs_holds_up_nobody(
    leases: Leases, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, original = threading.Event(), store.claim

    def hangs(*arguments: object) -> list[Lease]:
        assert gate.wait(60)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "claim", hangs)
    job = store.submit(make_request())
    began = time.thread_time()
    leases.claim(10)
    for _ in range(100):
        leases.claim(10)
        assert leases.claimed() == [] and leases.renew(["a lease"]) == set()
    assert time.thread_time() - began < 1.0
    gate.set()
    assert [lease.job.id for lease in leases.claimed(30.0)] == [job.id]


def test_closing_gives_back_what_nobody_took(store: SQLiteStore) -> None:
    leases = Leases("worker", store, 30.0, ["tiny-xl"], WorkerMetrics())
    job = store.submit(make_request())
    leases.claim(10)
    leases.close()
    found = store.get(job.id)
    assert found is not None and found.state is JobState.QUEUED and found.attempts == 0
