"""What only the SQLite store promises: the file's schema, waiting for locks, flat costs."""

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
from service.jobs.job import JobState, TextToImage
from service.jobs.sqlite import SQLiteStore
from service.jobs.sqlite_file import SCHEMA_VERSION
from service.jobs.store import JobStore

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
    assert store._db.execute("PRAGMA synchronous").fetchone() == (level,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_unusable_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    SQLiteStore(tmp_path / "newer.db").close()
    for name, statement in (
        ("newer.db", f"PRAGMA user_version = {SCHEMA_VERSION + 1}"),
        ("foreign.db", "CREATE TABLE jobs (id)"),
    ):
        db = sqlite3.connect(tmp_path / name)
        db.execute(statement)
        db.close()
    before = (tmp_path / "foreign.db").read_bytes()
    with pytest.raises(RuntimeError, match="newer than"):
        SQLiteStore(tmp_path / "newer.db")
    with pytest.raises(RuntimeError, match="another program"):
        SQLiteStore(tmp_path / "foreign.db")
    with pytest.raises(RuntimeError, match="write-ahead"):
        SQLiteStore(":memory:")
    with pytest.raises(ValueError, match="OFF"):
        SQLiteStore(tmp_path / "jobs.db", synchronous="OFF")  # type: ignore[arg-type]
    assert (tmp_path / "foreign.db").read_bytes() == before


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


@pytest.mark.parametrize("lock", ["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_opening_a_new_file_waits_for_locks(tmp_path: Path, lock: str) -> None:
    """SQLite itself gives up at once where the switch to write-ahead logging meets another process."""
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None, check_same_thread=False)
    other.execute(lock)
    other.execute("SELECT count(*) FROM sqlite_master").fetchall()
    release = threading.Timer(0.2, other.rollback)
    release.start()
    store = SQLiteStore(tmp_path / "jobs.db", busy_timeout_s=5)
    release.join()
    assert store.stats().queued == 0
    store.close()
    other.close()


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

    store._db.set_progress_handler(step, 1)
    call()
    store._db.set_progress_handler(None, 1)
    return count


def _costs(path: Path, queued: int, finished: int, request: TextToImage, clock: Any) -> dict[str, int]:
    store = SQLiteStore(path, max_queued=1_000_000, clock=clock)
    store.submit(request)
    store._db.execute("BEGIN")
    store._db.execute(
        "INSERT INTO jobs (id, request, state, created_at)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " SELECT printf('%014x%018x', 2e12 + i, i), request, iif(i > ?, 'queued', 'completed'), created_at"
        " FROM n, jobs WHERE seq = 1",
        (queued + finished, finished),
    )
    store._db.execute("COMMIT")
    middle = store.list(5)[-1].id
    lease = store.claim("w1", 1, 30)[0]
    calls: dict[str, Callable[[], object]] = {
        "submit": lambda: store.submit(request, "key"),
        "submit again": lambda: store.submit(request, "key"),
        "claim": lambda: store.claim("w1", 2, 30),
        "renew": lambda: store.renew([lease.id], 30),
        "list": lambda: store.list(4, after=middle),
        "list by state": lambda: store.list(2, after=middle, state=JobState.QUEUED),
        "list rare state": lambda: store.list(4, state=JobState.FAILED),
        "stats": store.stats,
        "complete": lambda: store.complete(lease.id, []),
        "cancel": lambda: store.cancel(middle),
        "reap": lambda: store.reap("w1"),
    }
    costs = {name: _instructions(store, call) for name, call in calls.items()}
    costs["control"] = _instructions(
        store, lambda: store._db.execute("SELECT count(*) FROM jobs WHERE attempts = 9").fetchall()
    )
    store.close()
    return costs


def test_costs_stay_flat_from_10_to_100_000_jobs(tmp_path: Path, picture: Picture, clock: Any) -> None:
    few = _costs(tmp_path / "few.db", 10, 10, picture(), clock)
    many = _costs(tmp_path / "many.db", 50_000, 50_000, picture(), clock)
    assert many.pop("control") > 1000 * few.pop("control"), "a query without an index must show"
    grown = {name: (few[name], cost) for name, cost in many.items() if cost > 1.2 * few[name]}
    assert not grown


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
