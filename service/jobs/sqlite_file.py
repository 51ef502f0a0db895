"""The embedded store's file: its schema and earlier ones, and how it is opened by several processes at once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from service.jobs.sqlite_writer import result_code

SCHEMA_VERSION = 3
_APPLICATION_ID = 0x4461726B  # "Dark": tells our files from those of other programs

# seq is the order of acceptance and decides every ordering; wall clocks go back, a rowid does not.
# An index holds the rowid after its columns: jobs_by_state is (state, task, seq), waiting (model, priority, seq), and
# neither needs a sorting step. Partial indexes cost only the rows that they hold.
# The counts are kept by triggers: counting a queue of 100,000 jobs on every submit would cost milliseconds. An end is
# never uncounted, so those rows, of no model, count all jobs that ever ended so. Running jobs are few, and counted when
# asked for.
_TASK = "task TEXT AS (json_extract(request, '$.task'))"
_JOBS_BY_STATE = "CREATE INDEX jobs_by_state ON jobs(state, task)"
_COUNTS = (
    """CREATE TABLE counts (
        state TEXT, priority TEXT, model TEXT, jobs INTEGER NOT NULL, PRIMARY KEY (state, priority, model)
    ) WITHOUT ROWID""",
)
_COUNTING = (
    """CREATE TRIGGER count_insert AFTER INSERT ON jobs WHEN NEW.state <> 'running' BEGIN
        INSERT INTO counts VALUES (NEW.state, NEW.priority, iif(NEW.state = 'queued', NEW.model, ''), 1)
        ON CONFLICT DO UPDATE SET jobs = jobs + 1; END""",
    """CREATE TRIGGER count_leave AFTER UPDATE OF state ON jobs WHEN OLD.state = 'queued' BEGIN
        UPDATE counts SET jobs = jobs - 1 WHERE state = 'queued' AND priority = NEW.priority AND model = NEW.model;
        END""",
    """CREATE TRIGGER count_enter AFTER UPDATE OF state ON jobs WHEN NEW.state <> 'running' BEGIN
        INSERT INTO counts VALUES (NEW.state, NEW.priority, iif(NEW.state = 'queued', NEW.model, ''), 1)
        ON CONFLICT DO UPDATE SET jobs = jobs + 1; END""",
)
_STAMP = (f"PRAGMA application_id = {_APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION}")
_SCHEMA = (
    f"""CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE, request TEXT NOT NULL, state TEXT NOT NULL,
        model TEXT NOT NULL, priority TEXT NOT NULL,
        created_at REAL NOT NULL, deadline_at REAL, started_at REAL, finished_at REAL,
        attempts INTEGER NOT NULL DEFAULT 0, checkpoint TEXT, results TEXT NOT NULL DEFAULT '[]', error TEXT,
        idempotency_key TEXT, lease_id TEXT, worker TEXT, lease_expires_at REAL, {_TASK},
        CHECK ((state = 'running') = (lease_id IS NOT NULL)),
        CHECK ((state IN ('queued', 'running')) = (finished_at IS NULL))
    )""",
    _JOBS_BY_STATE,
    "CREATE INDEX waiting ON jobs(model, priority) WHERE state = 'queued'",
    "CREATE INDEX deadlines ON jobs(deadline_at) WHERE state = 'queued' AND deadline_at IS NOT NULL",
    "CREATE INDEX ended ON jobs(finished_at) WHERE finished_at IS NOT NULL",
    "CREATE UNIQUE INDEX keys ON jobs(idempotency_key) WHERE idempotency_key IS NOT NULL",
    # How often jobs have this artifact as an input, a result or their checkpoint.
    "CREATE TABLE artifacts (name TEXT PRIMARY KEY, uses INTEGER NOT NULL) WITHOUT ROWID",
    *_COUNTS,
    *_COUNTING,
    *_STAMP,
)

_FROM_VERSION_1 = (
    "DROP TRIGGER count_insert",
    "DROP TRIGGER count_update",
    "DROP TABLE counts",
    "DROP INDEX jobs_by_state",
    "ALTER TABLE jobs RENAME TO jobs_of_version_1",
    *_SCHEMA,
    """INSERT INTO jobs (seq, id, request, state, model, priority, created_at, started_at, finished_at, attempts,
            results, error, idempotency_key, lease_id, worker, lease_expires_at)
        SELECT seq, id, request, state, json_extract(request, '$.model'), 'standard', created_at, started_at,
            finished_at, attempts, results, error, idempotency_key, lease_id, worker, lease_expires_at
        FROM jobs_of_version_1""",
    """INSERT INTO artifacts SELECT json_extract(result.value, '$.content_sha256'), count(*)
        FROM jobs_of_version_1, json_each(results) AS result GROUP BY 1""",
    "DROP TABLE jobs_of_version_1",
)

_FROM_VERSION_2 = (
    "DROP TRIGGER count_insert",
    "DROP TRIGGER count_update",
    f"ALTER TABLE jobs ADD COLUMN {_TASK}",
    "DROP INDEX jobs_by_state",
    _JOBS_BY_STATE,
    "ALTER TABLE counts RENAME TO counts_of_version_2",
    *_COUNTS,
    "INSERT INTO counts SELECT state, priority, '', jobs FROM counts_of_version_2 WHERE state <> 'queued'",
    """INSERT INTO counts SELECT state, priority, model, count(*) FROM jobs WHERE state = 'queued'
        GROUP BY priority, model""",
    "DROP TABLE counts_of_version_2",
    *_COUNTING,
    *_STAMP,
)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Hold the write lock from the start; roll back whatever is raised."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def connect(path: Path, synchronous: Literal["NORMAL", "FULL"], busy_timeout_s: float) -> sqlite3.Connection:
    """Open or make the file at ``path``, waiting up to ``busy_timeout_s`` for others; autocommit mode. A file of an
    earlier version is brought up to date.

    Raises:
        RuntimeError: another program's file, a newer schema, or a file system without shared memory.
    """
    if synchronous not in ("NORMAL", "FULL"):
        raise ValueError(f"synchronous is NORMAL or FULL, not {synchronous!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + busy_timeout_s
    db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    while True:
        try:
            _prepare(db, path)
            db.execute(f"PRAGMA synchronous = {synchronous}")
            return db
        except BaseException as error:
            # Two processes that turn on write-ahead logging at once: SQLite does not wait there, so we do.
            if result_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                db.close()
                raise
            time.sleep(0.01)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Create, bring up to date or check the schema; touches nothing in a file that is not ours."""
    if _version(db, path) == SCHEMA_VERSION:
        return
    # A write touches some six pages, and all of each goes to the log: with half the usual size it costs a fifth less.
    db.execute("PRAGMA page_size = 2048")  # of a new file
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise RuntimeError(f"{path}: SQLite's write-ahead log is needed and does not work there (mode {mode})")
    with transaction(db):
        version = _version(db, path)  # again, under the lock: another process may have been faster
        statements = {0: _SCHEMA, 1: _FROM_VERSION_1, 2: _FROM_VERSION_2, SCHEMA_VERSION: ()}[version]
        for statement in statements:
            db.execute(statement)


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The schema's version, 0 for an empty file."""
    version, application, tables = db.execute(
        "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    if application != _APPLICATION_ID and (version or tables or application):
        raise RuntimeError(f"{path} is the database of another program")
    if version > SCHEMA_VERSION:
        raise RuntimeError(f"{path} has job schema {version}, newer than {SCHEMA_VERSION}: upgrade Darkroom")
    return int(version)
