"""The embedded job store: one SQLite file shared by the processes of one machine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from service.errors import QueueFull, UnknownJob
from service.jobs import sqlite_rows as rows
from service.jobs.job import Job, JobError, JobState, Lease, Priority, Request, Result, Task
from service.jobs.sqlite_file import connect
from service.jobs.sqlite_writer import Writer, WriterAtOnce, public
from service.jobs.store import (
    MAX_ATTEMPTS,
    WORKER_LOST,
    Pruned,
    QueueStats,
    check_deadline,
    check_repeated,
    request_json,
)

T = TypeVar("T")


class SQLiteStore:
    """A :class:`service.jobs.store.JobStore` in a file.

    Several processes may open the same file, each with its own store; it must lie on a local disk, since write-ahead
    logging shares memory between them. What a call wrote outlives the process at once; it outlives a power cut at
    once with ``synchronous="FULL"`` (one more disk flush a group of calls), else the last calls before the cut may be
    lost. Writes go through one connection in groups (:class:`service.jobs.sqlite_writer.Writer`), reads through another
    that no write holds up.

    A lease counts as held until :meth:`reap` takes it back, even when it has run out: finished work is not thrown away.

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
        self._pid = os.getpid()
        self._writer = Writer(connect(Path(path), synchronous, busy_timeout_s))
        self._at_once = WriterAtOnce(connect(Path(path), synchronous, busy_timeout_s))
        self._reader = connect(Path(path), synchronous, busy_timeout_s)
        self._reading = threading.Lock()

    def submit(
        self,
        request: Request,
        idempotency_key: str | None = None,
        *,
        priority: Priority = Priority.STANDARD,
        deadline_s: float | None = None,
        wait: bool = True,
    ) -> Job:
        """Accept a job; see :meth:`JobStore.submit`."""
        text = request_json(request)
        check_deadline(deadline_s)

        def write(db: sqlite3.Connection) -> Job:
            if idempotency_key is not None:
                for first in rows.jobs(db.execute(f"{rows.SELECT} idempotency_key = ?", (idempotency_key,))):
                    check_repeated(first, idempotency_key, request, priority, deadline_s)
                    return first
            queued = rows.queued(db)
            if queued >= self._max_queued:
                raise QueueFull(f"{queued} jobs are waiting, and the limit is {self._max_queued}")
            now = self._clock()
            job = Job(
                id=rows.new_id(db, now),
                request=request,
                state=JobState.QUEUED,
                created_at=now,
                priority=priority,
                deadline_at=None if deadline_s is None else now + deadline_s,
            )
            db.execute(
                "INSERT INTO jobs (id, request, state, model, priority, created_at, deadline_at, idempotency_key)"
                " VALUES (?, ?, 'queued', ?, ?, ?, ?, ?)",
                (job.id, text, request.model, priority.value, now, job.deadline_at, idempotency_key),
            )
            rows.use(db, request.inputs)
            return job

        return self._write(write, wait)

    def claim(self, worker: str, limit: int, lease_s: float, models: Collection[str] | None = None) -> list[Lease]:
        """Take queued jobs; see :meth:`JobStore.claim`."""
        with self._read() as db:  # an idle worker that polls never takes the write lock
            if limit <= 0 or db.execute("SELECT 1 FROM jobs WHERE state = 'queued' LIMIT 1").fetchone() is None:
                return []

        def write(db: sqlite3.Connection) -> list[Lease]:
            now = self._clock()
            rows.expire(db, now)
            leases = []
            for seq in rows.next_in_turn(db, limit, models):
                lease_id = rows.new_lease(seq)
                updated = db.execute(
                    "UPDATE jobs SET state = 'running', started_at = ?, attempts = attempts + 1, lease_id = ?,"
                    f" worker = ?, lease_expires_at = ? WHERE seq = ? RETURNING {rows.COLUMNS}",
                    (now, lease_id, worker, now + lease_s, seq),
                )
                leases.append(Lease(id=lease_id, job=rows.jobs(updated)[0], expires_at=now + lease_s))
            return leases

        return self._write(write)

    def renew(self, lease_ids: Sequence[str], lease_s: float) -> set[str]:
        """Let leases end ``lease_s`` seconds from now; see :meth:`JobStore.renew`."""
        if not lease_ids:
            return set()

        def write(db: sqlite3.Connection) -> set[str]:
            expires_at = self._clock() + lease_s
            held = {lease_id: seq for lease_id in lease_ids for seq, _ in rows.leased(db, lease_id)}
            for seq in held.values():
                db.execute("UPDATE jobs SET lease_expires_at = ? WHERE seq = ?", (expires_at, seq))
            return set(held)

        return self._write(write)

    def checkpoint(self, lease_id: str, artifact: str) -> bool:
        """Record from where to go on; see :meth:`JobStore.checkpoint`."""

        def write(db: sqlite3.Connection) -> bool:
            for seq, before in rows.leased(db, lease_id):
                db.execute("UPDATE jobs SET checkpoint = ? WHERE seq = ?", (artifact, seq))
                rows.use(db, [artifact])
                rows.disuse(db, before)
                return True
            return False

        return self._write(write)

    def complete(self, lease_id: str, results: Sequence[Result]) -> bool:
        """Record the outcome; see :meth:`JobStore.complete`."""
        return self._write(partial(_end, lease_id, rows.Outcome(JobState.COMPLETED, self._clock(), tuple(results))))

    def fail(self, lease_id: str, error: JobError) -> bool:
        """Record a failure; see :meth:`JobStore.fail`."""
        return self._write(partial(_end, lease_id, rows.Outcome(JobState.FAILED, self._clock(), error=error)))

    def cancel(self, job_id: str) -> Job | None:
        """End a job as cancelled and take back its lease; see :meth:`JobStore.cancel`."""
        return self._write(lambda db: rows.cancel(db, job_id, self._clock()))

    def delete(self, job_id: str) -> Job | None:
        """Forget a job; see :meth:`JobStore.delete`."""

        def write(db: sqlite3.Connection) -> Job | None:
            job = rows.cancel(db, job_id, self._clock())
            if job is not None:
                rows.delete(db, job)
            return job

        return self._write(write)

    def position(self, job_id: str) -> int | None:
        """Queued jobs before this one; see :meth:`JobStore.position`."""
        with self._snapshot() as db:
            return rows.position(db, job_id)

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        with self._read() as db:
            return rows.one(db, job_id)

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """States of several jobs; see :meth:`JobStore.states`."""
        with self._read() as db:
            return rows.states(db, job_ids)

    def list(
        self,
        limit: int,
        after: str | None = None,
        state: JobState | None = None,
        *,
        tasks: Collection[Task] | None = None,
        oldest_first: bool = False,
    ) -> list[Job]:
        """A page of jobs; see :meth:`JobStore.list`."""
        with self._snapshot() as db:
            found = None if after is None else db.execute("SELECT seq FROM jobs WHERE id = ?", (after,)).fetchone()
            if after is not None and found is None:
                raise UnknownJob(f"there is no job {after!r} to list from", param="after")
            # To SQLite a negative limit is none.
            return rows.page(db, max(limit, 0), found[0] if found else None, state, tasks, oldest_first)

    def reap(self, worker: str | None = None) -> int:
        """Return lost jobs to the queue, to their old turn, or fail them; see :meth:`JobStore.reap`."""
        now = self._clock()
        where, value = ("lease_expires_at <= ?", now) if worker is None else ("worker = ?", worker)
        where = f"state = 'running' AND {where}"
        with self._read() as db:  # the common case, nothing to do, takes no write lock
            lost = db.execute(f"SELECT 1 FROM jobs WHERE {where} LIMIT 1", (value,)).fetchone()
            if lost is None and not rows.any_overdue(db, now):
                return 0

        def write(db: sqlite3.Connection) -> int:
            outcome = rows.Outcome(JobState.FAILED, now, error=WORKER_LOST)
            failed = rows.held(db, f"{where} AND attempts >= {MAX_ATTEMPTS}", value)
            for seq, checkpoint in failed:
                rows.finish(db, seq, checkpoint, outcome)
            requeued = db.execute(f"{rows.REQUEUE} WHERE {where}", (value,)).rowcount
            rows.expire(db, now)
            return len(failed) + requeued

        return self._write(write)

    def release(self, worker: str) -> int:
        """Give a worker's jobs back unharmed, to their old turn; see :meth:`JobStore.release`."""
        sql = f"{rows.REQUEUE}, attempts = attempts - 1 WHERE state = 'running' AND worker = ?"
        return self._write(lambda db: db.execute(sql, (worker,)).rowcount)

    def stats(self) -> QueueStats:
        """Depths, ages and ends; see :meth:`JobStore.stats`."""
        with self._snapshot() as db:
            return rows.stats(db)

    def prune(self, ended_before: float, limit: int) -> Pruned:
        """Delete old jobs; see :meth:`JobStore.prune`."""
        return self._write(lambda db: rows.prune(db, ended_before, limit))

    def referenced(self, artifacts: Sequence[str]) -> set[str]:
        """Artifacts in use; see :meth:`JobStore.referenced`."""
        with self._read() as db:
            sql = "SELECT 1 FROM artifacts WHERE name = ?"
            return {name for name in artifacts if db.execute(sql, (name,)).fetchone() is not None}

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        with self._reading:
            self._reader.close()
        self._at_once.close()
        self._writer.close()

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """The connection for reading, this thread's alone."""
        self._check_process()
        with self._reading:
            try:
                yield self._reader
            except sqlite3.Error as error:
                told = public(error)
                raise told from (None if told is error else error)

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Several reads of one moment."""
        with self._read() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("COMMIT")

    def _write(self, operation: Callable[[sqlite3.Connection], T], wait: bool = True) -> T:
        self._check_process()
        return self._writer.run(operation) if wait else self._at_once.run(operation)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:  # before a lock, which a thread that fork did not copy may hold
            raise RuntimeError("this store was opened before a fork; open one in each process")


def _end(lease_id: str, outcome: rows.Outcome, db: sqlite3.Connection) -> bool:
    """Write the outcome of the job under this lease, if there is one."""
    found = rows.leased(db, lease_id)
    for seq, checkpoint in found:
        rows.finish(db, seq, checkpoint, outcome)
    return bool(found)
