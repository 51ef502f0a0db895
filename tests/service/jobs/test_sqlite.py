"""What only the SQLite store promises: waiting for locks, flat costs."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import Unavailable
from service.jobs import sqlite_writer
from service.jobs.job import JobState, TextToImage
from service.jobs.sqlite import SQLiteStore
from service.jobs.sqlite_writer import AT_ONCE
from service.jobs.store import POSITION_EXACT, JobStore

Picture = Callable[..., TextToImage]
Spawn = Callable[[str], "subprocess.Popen[str]"]

HOLD_THE_LOCK = """
import sqlite3, sys, time
db = sqlite3.connect({path!r}, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked")
time.sleep({seconds})
db.execute("COMMIT")
"""


def test_it_has_every_verb(tmp_path: Path) -> None:
    store: JobStore = SQLiteStore(tmp_path / "new" / "folder" / "jobs.db")  # mypy compares the signatures
    store.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store.stats()


@pytest.mark.parametrize(("synchronous", "level"), [("NORMAL", 1), ("FULL", 2)])
def test_journal_and_flushing(tmp_path: Path, synchronous: Any, level: int) -> None:
    store = SQLiteStore(tmp_path / "jobs.db", synchronous=synchronous)
    for db in (store._reader, store._writer._db):
        assert db.execute("PRAGMA synchronous").fetchone() == (level,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_a_locked_file_is_waited_for(tmp_path: Path, picture: Picture, spawn: Spawn) -> None:
    store = SQLiteStore(tmp_path / "jobs.db")
    impatient = SQLiteStore(tmp_path / "jobs.db", busy_timeout_s=0.1)
    child = spawn(HOLD_THE_LOCK.format(path=str(tmp_path / "jobs.db"), seconds=1.0))
    assert child.stdout is not None and child.stdout.readline() == "locked\n"
    started = time.monotonic()
    assert store.stats().queued == 0
    assert time.monotonic() - started < 0.5, "reading does not wait for a writer"
    with pytest.raises(Unavailable, match="locked"):
        impatient.submit(picture())
    store.submit(picture())
    assert 0.5 < time.monotonic() - started < 8
    assert impatient.submit(picture()).state is JobState.QUEUED, "a refused call leaves the store usable"
    store.close()
    impatient.close()


def test_a_submission_that_may_not_wait(tmp_path: Path, picture: Picture, spawn: Spawn) -> None:
    store = SQLiteStore(tmp_path / "jobs.db")
    assert store.get(store.submit(picture(), wait=False).id) is not None
    child = spawn(HOLD_THE_LOCK.format(path=str(tmp_path / "jobs.db"), seconds=1.0))
    assert child.stdout is not None and child.stdout.readline() == "locked\n"
    started = time.monotonic()
    with pytest.raises(BlockingIOError, match="locked"):
        store.submit(picture(), wait=False)
    assert time.monotonic() - started < 0.5 and store.stats().queued == 1
    child.wait(10)
    store.submit(picture(), wait=False)
    store.close()
    flushing = SQLiteStore(tmp_path / "jobs.db", synchronous="FULL")
    with pytest.raises(BlockingIOError, match="disk"):
        flushing.submit(picture(), wait=False)
    assert flushing.stats().queued == 2
    flushing.close()


@pytest.mark.parametrize("in_a_row", [sqlite_writer.AT_ONCE, 10_000], ids=["as it is", "never waiting"])
def test_the_log_stays_short(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch, in_a_row: int) -> None:
    monkeypatch.setattr(sqlite_writer, "AT_ONCE", in_a_row)
    store = SQLiteStore(tmp_path / "jobs.db")
    for _ in range(1000):
        try:
            store.submit(picture(), wait=False)
        except BlockingIOError:
            store.submit(picture())
    short = (tmp_path / "jobs.db-wal").stat().st_size < 6 * 2**20
    assert short == (in_a_row == AT_ONCE), "written back every thousand pages of 2 KiB, or never"
    store.close()


def test_a_forked_child_is_told_to_open_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLiteStore(tmp_path / "jobs.db")
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 1)
        with pytest.raises(RuntimeError, match="open one in each process"):
            store.stats()
    assert store.stats().queued == 0
    store.close()


def _instructions(store: SQLiteStore, call: Callable[[], object]) -> int:
    """How many steps of SQLite's machine a call takes: its cost without the noise of a clock."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    for db in (store._reader, store._writer._db):
        db.set_progress_handler(step, 1)
    call()
    for db in (store._reader, store._writer._db):
        db.set_progress_handler(None, 1)
    return count


def _costs(path: Path, queued: int, finished: int, request: TextToImage, clock: Any) -> dict[str, int]:
    store = SQLiteStore(path, max_queued=1_000_000, clock=clock)
    store.submit(request)
    store._writer._db.execute(
        "INSERT INTO jobs (id, request, model, priority, state, created_at, finished_at, deadline_at)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " SELECT printf('%014x%018x', 2e12 + i, i), request, iif(i % 2, model, 'another'),"
        " iif(i % 3, priority, 'batch'), iif(i > ?, 'queued', 'completed'), created_at,"
        " iif(i > ?, NULL, 2e12 + i), 4e12 FROM n, jobs WHERE seq = 1",
        (queued + finished, finished, finished),
    )
    last, *_, middle = (job.id for job in store.list(5))
    lease = store.claim("w1", 1, 30)[0]
    calls: dict[str, Callable[[], object]] = {
        "submit": lambda: store.submit(request, "key"),
        "submit again": lambda: store.submit(request, "key"),
        "claim": lambda: store.claim("w1", 2, 30),
        "claim of models": lambda: store.claim("w1", 2, 30, ["another", "third"]),
        "checkpoint": lambda: store.checkpoint(lease.id, "half"),
        "renew": lambda: store.renew([lease.id], 30),
        "list": lambda: store.list(4, after=middle),
        "list by state": lambda: store.list(2, after=middle, state=JobState.QUEUED),
        "list rare state": lambda: store.list(4, state=JobState.FAILED),
        "list rare task": lambda: store.list(4, tasks=["inpainting"], oldest_first=True),
        "list rare pair": lambda: store.list(4, state=JobState.COMPLETED, tasks=["image-to-video"]),
        "stats": store.stats,
        "position": lambda: store.position(last),
        "complete": lambda: store.complete(lease.id, []),
        "cancel": lambda: store.cancel(middle),
        "reap": lambda: store.reap("w1"),
        "reap by time": store.reap,
        "delete": lambda: store.delete(middle),
        "prune": lambda: store.prune(3e12, 3),
        "referenced": lambda: store.referenced(["half"]),
    }
    costs = {name: _instructions(store, call) for name, call in calls.items()}
    costs["control"] = _instructions(
        store, lambda: store._reader.execute("SELECT count(*) FROM jobs WHERE attempts = 9").fetchall()
    )
    store.close()
    return costs


def test_costs_stay_flat_from_10_to_100_000_jobs(tmp_path: Path, picture: Picture, clock: Any) -> None:
    few = _costs(tmp_path / "few.db", 10, 10, picture(), clock)
    many = _costs(tmp_path / "many.db", 50_000, 50_000, picture(), clock)
    assert many.pop("control") > 1000 * few.pop("control"), "a query without an index must show"
    assert many.pop("position") < 30 * POSITION_EXACT, "which is as far as it counts"
    grown = {name: (few[name], cost) for name, cost in many.items() if cost > 1.4 * few[name]}  # the trees are deeper
    assert not grown


DISK_FULL = """
import resource, sys
from service.errors import Unavailable
from service.jobs.job import TextToImage
from service.jobs.sqlite import SQLiteStore
store = SQLiteStore({path!r})
request = TextToImage.model_validate_json({request!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
for _ in range(200):
    try:
        print(store.submit(request).id)
    except Unavailable as error:
        print("full", error)
        break
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(store.submit(request).id)
"""


@pytest.mark.parametrize("limit", [300_000, 2**30])
def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, picture: Picture, spawn: Spawn, limit: int) -> None:
    """With the control: a disk that is large enough."""
    path = tmp_path / "jobs.db"
    child = spawn(DISK_FULL.format(path=str(path), request=picture().model_dump_json(), limit=limit))
    assert child.stdout is not None
    said = child.stdout.read().splitlines()
    refused = [line for line in said if line.startswith("full")]
    assert len(refused) == (limit < 2**30)
    store = SQLiteStore(path)
    assert [job.id for job in store.list(1000)][::-1] == [line for line in said if line not in refused]
    assert (len(said) == 201) == (not refused) and len(said) > 5
    store.close()


def test_a_slow_caller_does_not_mix_threads(tmp_path: Path, picture: Picture) -> None:
    """Two threads in one transaction would commit each other's halves."""
    entered, leave = threading.Event(), threading.Event()

    def slow_clock() -> float:
        if threading.current_thread().name == "slow":
            entered.set()
            leave.wait(10)
        return 1.0

    store = SQLiteStore(tmp_path / "jobs.db", clock=slow_clock)
    slow = threading.Thread(target=store.submit, args=(picture(),), name="slow")
    slow.start()
    entered.wait(10)
    fast = threading.Thread(target=store.submit, args=(picture(),), name="fast")
    fast.start()
    fast.join(0.05)
    assert fast.is_alive(), "the second call waits for the first"
    leave.set()
    slow.join(10)
    fast.join(10)
    assert store.stats().queued == 2
    store.close()


def test_the_database_is_in_one_folder(tmp_path: Path, picture: Picture) -> None:
    store = SQLiteStore(str(tmp_path / "jobs.db"))
    store.submit(picture())
    store.close()
    assert os.listdir(tmp_path) == ["jobs.db"], "the last to close folds the log into the file"
