"""The embedded job store: one SQLite file shared by the processes of one machine."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from service.errors import IdempotencyConflict, QueueFull, Unavailable, UnknownJob
from service.jobs.job import Job, JobError, JobState, Lease, Result, TextToImage
from service.jobs.sqlite_file import connect, result_code, transaction
from service.jobs.store import MAX_ATTEMPTS, QueueStats

_COLUMNS = ", ".join(Job.model_fields)
_SELECT = f"SELECT {_COLUMNS} FROM jobs WHERE"
_NO_LEASE = "lease_id = NULL, worker = NULL, lease_expires_at = NULL"
_REQUEUE = f"UPDATE jobs SET state = 'queued', started_at = NULL, {_NO_LEASE}"
_RESULTS = TypeAdapter(tuple[Result, ...])


class SQLiteStore:
    """A :class:`service.jobs.store.JobStore` in a file.

    Several processes may open the same file, each with its own store; it must lie on a local disk, since write-ahead
    logging shares memory between them. What a call wrote outlives the process at once; it outlives a power cut at
    once with ``synchronous="FULL"`` (one more disk flush a call), else the last calls before the cut may be lost.

    A lease counts as held until :meth:`reap` takes it back, even when it has run out: finished work is not thrown away.
    Every method raises :class:`Unavailable` when the file stays locked for ``busy_timeout_s`` or the disk is full.

    Args:
        path: the database file; it and its folder are created when missing.
        max_queued: jobs that may wait; the next submit raises :class:`QueueFull`.
        clock: Unix seconds.
        busy_timeout_s: how long a call waits for other processes.

    Raises:
        RuntimeError: the file belongs to another program, has a newer schema, or its disk has no write-ahead logging.
    """

    def __init__(
        self,
        path: Path | str,
        max_queued: int = 10_000,
        clock: Callable[[], float] = time.time,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        busy_timeout_s: float = 10.0,
    ) -> None:
        self._max_queued = max_queued
        self._clock = clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._db = connect(Path(path), synchronous, busy_timeout_s)

    def submit(self, request: TextToImage, idempotency_key: str | None = None) -> Job:
        """Accept a job; see :meth:`JobStore.submit`. A known key is answered even when the queue is full."""
        with self._write() as db:
            for first in _jobs(db.execute(f"{_SELECT} idempotency_key = ?", (idempotency_key,))):  # NULL equals nothing
                if first.request != request:
                    raise IdempotencyConflict(f"idempotency key {idempotency_key!r} was used with another request")
                return first
            (queued,) = db.execute("SELECT jobs FROM counts WHERE state = 'queued'").fetchone()
            if queued >= self._max_queued:
                raise QueueFull(f"{queued} jobs are waiting, and the limit is {self._max_queued}")
            now = self._clock()
            inserted = db.execute(
                "INSERT INTO jobs (id, request, state, created_at, idempotency_key)"
                f" VALUES (?, ?, 'queued', ?, ?) RETURNING {_COLUMNS}",
                (_new_id(db, now), request.model_dump_json(), now, idempotency_key),
            )
            # Read back before the commit: a request that JSON cannot hold (infinite guidance) would break every claim.
            return _jobs(inserted)[0]

    def claim(self, worker: str, limit: int, lease_s: float) -> list[Lease]:
        """Take up to ``limit`` queued jobs for ``lease_s`` seconds; see :meth:`JobStore.claim`."""
        if limit <= 0 or self.stats().queued == 0:  # an idle worker that polls never takes the write lock
            return []
        with self._write() as db:
            now = self._clock()
            found = db.execute("SELECT seq FROM jobs WHERE state = 'queued' ORDER BY seq LIMIT ?", (limit,))
            leases = []
            for (seq,) in found.fetchall():
                lease_id = secrets.token_urlsafe(24)
                updated = db.execute(
                    "UPDATE jobs SET state = 'running', started_at = ?, attempts = attempts + 1, lease_id = ?,"
                    f" worker = ?, lease_expires_at = ? WHERE seq = ? RETURNING {_COLUMNS}",
                    (now, lease_id, worker, now + lease_s, seq),
                )
                leases.append(Lease(id=lease_id, job=_jobs(updated)[0], expires_at=now + lease_s))
            return leases

    def renew(self, lease_ids: Sequence[str], lease_s: float) -> set[str]:
        """Let leases end ``lease_s`` seconds from now; see :meth:`JobStore.renew`."""
        if not lease_ids:
            return set()
        with self._write() as db:
            expires_at = self._clock() + lease_s
            sql = "UPDATE jobs SET lease_expires_at = ? WHERE lease_id = ?"
            return {lease_id for lease_id in lease_ids if db.execute(sql, (expires_at, lease_id)).rowcount == 1}

    def complete(self, lease_id: str, results: Sequence[Result]) -> bool:
        """Record the outcome; see :meth:`JobStore.complete`."""
        return self._end(lease_id, JobState.COMPLETED, _RESULTS.dump_json(tuple(results)).decode(), None)

    def fail(self, lease_id: str, error: JobError) -> bool:
        """Record a failure; see :meth:`JobStore.fail`."""
        return self._end(lease_id, JobState.FAILED, "[]", error.model_dump_json())

    def cancel(self, job_id: str) -> Job | None:
        """End a job as cancelled and take back its lease; see :meth:`JobStore.cancel`."""
        with self._write() as db:
            sql = f"UPDATE jobs SET state = 'cancelled', finished_at = ?, {_NO_LEASE}"
            db.execute(f"{sql} WHERE id = ? AND state IN ('queued', 'running')", (self._clock(), job_id))
            return next(iter(_jobs(db.execute(f"{_SELECT} id = ?", (job_id,)))), None)

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        with self._read() as db:
            return next(iter(_jobs(db.execute(f"{_SELECT} id = ?", (job_id,)))), None)

    def list(self, limit: int, after: str | None = None, state: JobState | None = None) -> list[Job]:
        """Newest first; see :meth:`JobStore.list`.

        Raises:
            UnknownJob: there is no job ``after``. An empty answer would look like the end of the list.
        """
        with self._read() as db:
            before = None if after is None else db.execute("SELECT seq FROM jobs WHERE id = ?", (after,)).fetchone()
            if after is not None and before is None:
                raise UnknownJob(f"there is no job {after!r} to list from", param="after")
            where, values = ("", ()) if state is None else (" AND state = ?", (state.value,))
            bound = before[0] if before else 2**63 - 1
            sql = f"{_SELECT} seq < ?{where} ORDER BY seq DESC LIMIT ?"  # where a negative limit would mean none
            return _jobs(db.execute(sql, (bound, *values, max(limit, 0))))

    def reap(self, worker: str | None = None) -> int:
        """Return lost jobs to the queue, at its front, or fail them; see :meth:`JobStore.reap`."""
        lost = JobError(code="worker_lost", message=f"the job's worker was lost {MAX_ATTEMPTS} times")
        now = self._clock()
        value = now if worker is None else worker
        where = f"state = 'running' AND {'lease_expires_at <= ?' if worker is None else 'worker = ?'}"
        with self._read() as db:  # the common case, nothing lost, takes no write lock
            if db.execute(f"SELECT 1 FROM jobs WHERE {where} LIMIT 1", (value,)).fetchone() is None:
                return 0
        with self._write() as db:
            sql = f"UPDATE jobs SET state = 'failed', error = ?, finished_at = ?, {_NO_LEASE} WHERE attempts >= ? AND"
            failed = db.execute(f"{sql} {where}", (lost.model_dump_json(), now, MAX_ATTEMPTS, value)).rowcount
            return failed + db.execute(f"{_REQUEUE} WHERE {where}", (value,)).rowcount

    def release(self, worker: str) -> int:
        """Give a worker's jobs back unharmed, to the front of the queue; see :meth:`JobStore.release`."""
        with self._write() as db:
            where = "WHERE state = 'running' AND worker = ?"
            return db.execute(f"{_REQUEUE}, attempts = attempts - 1 {where}", (worker,)).rowcount

    def stats(self) -> QueueStats:
        """Depth of the queue and age of its oldest job."""
        with self._read() as db:
            oldest = "(SELECT created_at FROM jobs WHERE state = 'queued' ORDER BY seq LIMIT 1)"
            rows = db.execute(f"SELECT jobs, {oldest} FROM counts ORDER BY state")  # queued comes before running
            (queued, oldest_at), (running, _) = rows.fetchall()
            return QueueStats(queued, running, oldest_at)

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        with self._lock:
            self._db.close()

    def _end(self, lease_id: str, state: JobState, results: str, error: str | None) -> bool:
        with self._write() as db:
            sql = f"UPDATE jobs SET state = ?, results = ?, error = ?, finished_at = ?, {_NO_LEASE} WHERE lease_id = ?"
            return db.execute(sql, (state.value, results, error, self._clock(), lease_id)).rowcount == 1

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """The connection, this thread's alone."""
        if os.getpid() != self._pid:  # before the lock, which a thread that fork did not copy may hold
            raise RuntimeError("this store was opened before a fork; open one in each process")
        with self._lock:
            try:
                yield self._db
            except sqlite3.OperationalError as error:
                if result_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL):
                    raise Unavailable(f"the job store cannot be used now: {error}") from error
                raise

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its start, so it cannot fail half way for lack of it."""
        with self._read() as db, transaction(db):
            yield db


def _new_id(db: sqlite3.Connection, now: float) -> str:
    """32 hex digits: microseconds since 1970, later than every id before, and 72 random bits."""
    last = db.execute("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1").fetchone()
    earliest_us = int(last[0][:14], 16) + 1 if last else 0
    return f"{max(int(now * 1e6), earliest_us):014x}{secrets.token_hex(9)}"


def _jobs(cursor: sqlite3.Cursor) -> list[Job]:
    """Every row of a query for ``_COLUMNS``, read to its end, for an open cursor would keep its transaction open."""
    jobs = []
    for row in cursor.fetchall():
        fields = dict(zip(Job.model_fields, row, strict=True))
        for name in ("request", "results", "error"):
            fields[name] = None if fields[name] is None else json.loads(fields[name])
        jobs.append(Job.model_validate(fields))
    return jobs
