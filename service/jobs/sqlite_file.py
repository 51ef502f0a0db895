"""The embedded store's file: its schema, and how it is opened by several processes at once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x4461726B  # "Dark": tells our files from those of other programs

# seq is the order of acceptance and decides every ordering; wall clocks go back, a rowid does not.
# An index holds the rowid after its columns, so jobs_by_state is (state, seq) and needs no sorting step.
# The counts are kept by triggers: counting a queue of 100,000 jobs on every submit would cost milliseconds.
_SCHEMA = (
    """CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE, request TEXT NOT NULL, state TEXT NOT NULL,
        created_at REAL NOT NULL, started_at REAL, finished_at REAL,
        attempts INTEGER NOT NULL DEFAULT 0, results TEXT NOT NULL DEFAULT '[]', error TEXT,
        idempotency_key TEXT UNIQUE, lease_id TEXT UNIQUE, worker TEXT, lease_expires_at REAL,
        CHECK ((state = 'running') = (lease_id IS NOT NULL))
    )""",
    "CREATE INDEX jobs_by_state ON jobs(state)",
    "CREATE TABLE counts (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO counts VALUES ('queued', 0), ('running', 0)",
    """CREATE TRIGGER count_insert AFTER INSERT ON jobs
        BEGIN UPDATE counts SET jobs = jobs + 1 WHERE state = NEW.state; END""",
    """CREATE TRIGGER count_update AFTER UPDATE OF state ON jobs BEGIN
        UPDATE counts SET jobs = jobs + (state = NEW.state) - (state = OLD.state); END""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
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
    """Open or make the file at ``path``, waiting up to ``busy_timeout_s`` for others; autocommit mode.

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
    """Create or check the schema; touches nothing in a file that is not ours."""
    if _has_schema(db, path):
        return
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise RuntimeError(f"{path}: SQLite's write-ahead log is needed and does not work there (mode {mode})")
    with transaction(db):
        if not _has_schema(db, path):  # another process may have been faster
            for statement in _SCHEMA:
                db.execute(statement)


def _has_schema(db: sqlite3.Connection, path: Path) -> bool:
    version, application, tables = db.execute(
        "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    if application != _APPLICATION_ID and (version or tables or application):
        raise RuntimeError(f"{path} is the database of another program")
    if version > SCHEMA_VERSION:
        raise RuntimeError(f"{path} has job schema {version}, newer than {SCHEMA_VERSION}: upgrade Darkroom")
    return bool(version == SCHEMA_VERSION)


def result_code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for any other error."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
