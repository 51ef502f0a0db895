"""The file of the embedded store: whose it is, earlier schemas, and how several open it at once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs.job import JobState, Priority, TextToImage
from service.jobs.sqlite import SQLiteStore
from service.jobs.sqlite_file import SCHEMA_VERSION
from service.jobs.store import QueueStats

Picture = Callable[..., TextToImage]

VERSION_1 = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE, request TEXT NOT NULL, state TEXT NOT NULL,
    created_at REAL NOT NULL, started_at REAL, finished_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0, results TEXT NOT NULL DEFAULT '[]', error TEXT,
    idempotency_key TEXT UNIQUE, lease_id TEXT UNIQUE, worker TEXT, lease_expires_at REAL,
    CHECK ((state = 'running') = (lease_id IS NOT NULL))
);
CREATE INDEX jobs_by_state ON jobs(state);
CREATE TABLE counts (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counts VALUES ('queued', 0), ('running', 0);
CREATE TRIGGER count_insert AFTER INSERT ON jobs
    BEGIN UPDATE counts SET jobs = jobs + 1 WHERE state = NEW.state; END;
CREATE TRIGGER count_update AFTER UPDATE OF state ON jobs BEGIN
    UPDATE counts SET jobs = jobs + (state = NEW.state) - (state = OLD.state); END;
PRAGMA application_id = 0x4461726B;
PRAGMA user_version = 1;
"""
VERSION_2 = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE, request TEXT NOT NULL, state TEXT NOT NULL,
    model TEXT NOT NULL, priority TEXT NOT NULL,
    created_at REAL NOT NULL, deadline_at REAL, started_at REAL, finished_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0, checkpoint TEXT, results TEXT NOT NULL DEFAULT '[]', error TEXT,
    idempotency_key TEXT, lease_id TEXT, worker TEXT, lease_expires_at REAL,
    CHECK ((state = 'running') = (lease_id IS NOT NULL)),
    CHECK ((state IN ('queued', 'running')) = (finished_at IS NULL))
);
CREATE INDEX jobs_by_state ON jobs(state);
CREATE INDEX waiting ON jobs(model, priority) WHERE state = 'queued';
CREATE INDEX deadlines ON jobs(deadline_at) WHERE state = 'queued' AND deadline_at IS NOT NULL;
CREATE INDEX ended ON jobs(finished_at) WHERE finished_at IS NOT NULL;
CREATE UNIQUE INDEX keys ON jobs(idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE artifacts (name TEXT PRIMARY KEY, uses INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE counts (state TEXT, priority TEXT, jobs INTEGER NOT NULL, PRIMARY KEY (state, priority)) WITHOUT ROWID;
INSERT INTO counts SELECT state.value, priority.value, 0
    FROM json_each('["queued", "completed", "failed", "cancelled", "expired"]') AS state,
    json_each('["interactive", "standard", "batch"]') AS priority;
CREATE TRIGGER count_insert AFTER INSERT ON jobs BEGIN
    UPDATE counts SET jobs = jobs + 1 WHERE state = NEW.state AND priority = NEW.priority; END;
CREATE TRIGGER count_update AFTER UPDATE OF state ON jobs BEGIN
    UPDATE counts SET jobs = jobs - 1 WHERE OLD.state = 'queued' AND state = 'queued' AND priority = NEW.priority;
    UPDATE counts SET jobs = jobs + 1 WHERE state = NEW.state AND priority = NEW.priority; END;
PRAGMA application_id = 0x4461726B;
PRAGMA user_version = 2;
"""
RESULTS = '[{"content_sha256": "aa", "media_type": "image/png", "seed": 7, "numerics_id": "x"}]'


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


def test_a_file_of_the_first_version_is_brought_up_to_date(tmp_path: Path, picture: Picture) -> None:
    db = sqlite3.connect(tmp_path / "jobs.db")
    db.executescript(VERSION_1)
    text = picture().model_dump_json()
    lease = (None, None, None)
    for row in [
        (f"{10**15:014x}{1:018x}", text, "completed", 10.0, 11.0, 12.0, 1, RESULTS, None, "key", *lease),
        (f"{10**15 + 1:014x}{2:018x}", text, "running", 20.0, 21.0, None, 2, "[]", None, None, "lease", "w1", 50.0),
        (f"{10**15 + 2:014x}{3:018x}", text, "queued", 30.0, None, None, 0, "[]", None, None, *lease),
    ]:
        db.execute(f"INSERT INTO jobs VALUES (NULL, {', '.join('?' * 13)})", row)
    db.commit()
    db.close()
    store = SQLiteStore(tmp_path / "jobs.db")
    new = store.submit(picture(), priority=Priority.INTERACTIVE)
    newest, queued, running, done = store.list(10)
    assert newest == new and (done.state, done.results[0].content_sha256) == (JobState.COMPLETED, "aa")
    assert (running.attempts, running.priority, running.deadline_at) == (2, Priority.STANDARD, None)
    assert store.submit(picture(), "key") == done
    assert store.stats().ended == {JobState.COMPLETED: 1} and store.stats().queued == 2
    assert store.reap("w1") == 1, "the worker of the old version is gone"
    assert store.referenced(["aa"]) == {"aa"}
    assert [lease.job.id for lease in store.claim("w1", 5, 30)] == [running.id, queued.id, new.id]
    assert store.prune(1e12, 10).artifacts == ("aa",)
    store.close()


def test_a_file_of_the_second_version_is_brought_up_to_date(tmp_path: Path, picture: Picture) -> None:
    db = sqlite3.connect(tmp_path / "jobs.db")
    db.executescript(VERSION_2)
    insert = (
        "INSERT INTO jobs (id, request, model, state, priority, created_at, finished_at, results, lease_id, worker)"
        " VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?)"
    )
    text = picture().model_dump_json()
    for number, (model, state, priority) in enumerate(
        [
            ("a", "completed", "standard"),
            ("a", "failed", "batch"),
            ("b", "queued", "standard"),
            ("b", "queued", "batch"),
            ("a", "queued", "batch"),
            ("a", "running", "batch"),
        ]
    ):
        ended, running = state in ("completed", "failed"), state == "running"
        row = (f"{10**15 + number:014x}{number:018x}", text, model, state, priority, 9.0 if ended else None)
        lease = ("6.lease", "w1") if running else (None, None)
        db.execute(insert, (*row, RESULTS if state == "completed" else "[]", *lease))
    db.execute("INSERT INTO artifacts VALUES ('aa', 1)")
    db.execute("DELETE FROM jobs WHERE state = 'failed'")  # counted for ever
    db.commit()
    db.close()
    store = SQLiteStore(tmp_path / "jobs.db")
    stats = store.stats()
    assert (stats.queued, stats.running, stats.models) == (3, 1, {"a": 1, "b": 2})
    assert {priority: queue.queued for priority, queue in stats.classes.items()} == {
        Priority.STANDARD: 1,
        Priority.BATCH: 2,
    }
    assert stats.ended == {JobState.COMPLETED: 1, JobState.FAILED: 1}
    assert [job.state for job in store.list(10, tasks=["text-to-image"])] == [job.state for job in store.list(10)]
    assert len(store.list(10)) == 5 and store.list(10, tasks=["inpainting"]) == []
    assert store.complete("6.lease", []), "a lease of the old version is still one"
    assert len(store.claim("w1", 9, 30)) == 3
    assert store.stats() == QueueStats(0, 3, None, ended={JobState.COMPLETED: 2, JobState.FAILED: 1})
    assert store.prune(1e12, 10).artifacts == ("aa",)
    store.close()
