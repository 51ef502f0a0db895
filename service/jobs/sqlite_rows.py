"""What the embedded store does to the rows of its file. Each function that writes runs inside a transaction."""

from __future__ import annotations

import heapq
import secrets
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pydantic import TypeAdapter

from service.jobs.job import REQUEST, Job, JobError, JobState, Priority, Result
from service.jobs.store import HEAD_START_S, ClassStats, Pruned, QueueStats

COLUMNS = ", ".join(Job.model_fields)
SELECT = f"SELECT {COLUMNS} FROM jobs WHERE"
_NO_LEASE = "lease_id = NULL, worker = NULL, lease_expires_at = NULL"
REQUEUE = f"UPDATE jobs SET state = 'queued', started_at = NULL, {_NO_LEASE}"
_RESULTS = TypeAdapter(tuple[Result, ...])

# The models that have queued jobs, without a look at every job: from each to the next in the index.
_QUEUED_MODELS = """WITH RECURSIVE found(model) AS (
    SELECT min(model) FROM jobs INDEXED BY waiting WHERE state = 'queued'
    UNION ALL SELECT (SELECT min(model) FROM jobs INDEXED BY waiting WHERE state = 'queued' AND model > found.model)
    FROM found WHERE model IS NOT NULL
) SELECT model FROM found WHERE model IS NOT NULL"""
_IN_TURN = "FROM jobs INDEXED BY waiting WHERE state = 'queued' AND model = ? AND priority = ? ORDER BY seq LIMIT ?"
_OVERDUE = "FROM jobs INDEXED BY deadlines WHERE state = 'queued' AND deadline_at <= ?"


@dataclass(frozen=True)
class Outcome:
    """How a job ends."""

    state: JobState
    at: float  # Unix seconds
    results: tuple[Result, ...] = ()
    error: JobError | None = None


def new_id(db: sqlite3.Connection, now: float) -> str:
    """32 hex digits: microseconds since 1970, later than every id before, and 72 random bits."""
    last = db.execute("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1").fetchone()
    earliest_us = _accepted_us(last[0]) + 1 if last else 0
    return f"{max(int(now * 1e6), earliest_us):014x}{secrets.token_hex(9)}"


def jobs(cursor: sqlite3.Cursor) -> list[Job]:
    """Every row of a query for ``COLUMNS``, read to its end, for an open cursor would keep its transaction open."""
    found = []
    for row in cursor.fetchall():
        fields = dict(zip(Job.model_fields, row, strict=True))
        fields["request"] = REQUEST.validate_json(fields["request"])
        fields["results"] = _RESULTS.validate_json(fields["results"])
        if fields["error"] is not None:
            fields["error"] = JobError.model_validate_json(fields["error"])
        found.append(Job.model_validate(fields))
    return found


def one(db: sqlite3.Connection, job_id: str) -> Job | None:
    """The job of that id."""
    return next(iter(jobs(db.execute(f"{SELECT} id = ?", (job_id,)))), None)


def held(db: sqlite3.Connection, where: str, value: str | float) -> list[tuple[int, str | None]]:
    """Row number and checkpoint of the jobs for which ``where`` holds, which has one parameter."""
    return db.execute(f"SELECT seq, checkpoint FROM jobs WHERE {where}", (value,)).fetchall()


def new_lease(seq: int) -> str:
    """An unguessable id that holds the row's number, which saves an index."""
    return f"{seq}.{secrets.token_urlsafe(24)}"


def leased(db: sqlite3.Connection, lease_id: str) -> list[tuple[int, str | None]]:
    """Row number and checkpoint of the job under this lease, if it is held."""
    seq = lease_id.partition(".")[0]
    if not (seq.isascii() and seq.isdigit() and len(seq) < 19):  # 19 digits may be more than a row number holds
        return []
    return db.execute(
        "SELECT seq, checkpoint FROM jobs WHERE seq = ? AND lease_id = ?", (int(seq), lease_id)
    ).fetchall()


def next_in_turn(db: sqlite3.Connection, limit: int, models: Collection[str] | None) -> list[int]:
    """Row numbers of the queued jobs whose turn it is: the heads of all queues, merged."""
    if models is None:
        models = _queued_models(db)
    heads: list[tuple[float, int]] = []
    for model in models:
        for priority, head_start_s in HEAD_START_S.items():
            found = db.execute(f"SELECT id, seq {_IN_TURN}", (model, priority.value, limit))
            heads += [(_accepted_us(job_id) + head_start_s * 1e6, seq) for job_id, seq in found.fetchall()]
    return [seq for _, seq in heapq.nsmallest(limit, heads)]


def finish(db: sqlite3.Connection, seq: int, checkpoint: str | None, outcome: Outcome) -> None:
    """End a job that has not ended. ``checkpoint`` is the one it has."""
    error = None if outcome.error is None else outcome.error.model_dump_json()
    db.execute(
        "UPDATE jobs SET state = ?, results = ?, error = ?, finished_at = ?, checkpoint = NULL,"
        f" {_NO_LEASE} WHERE seq = ?",
        (outcome.state.value, _RESULTS.dump_json(outcome.results).decode(), error, outcome.at, seq),
    )
    use(db, (result.content_sha256 for result in outcome.results))
    disuse(db, checkpoint)


def any_overdue(db: sqlite3.Connection, now: float) -> bool:
    """Whether :func:`expire` would end a job."""
    return db.execute(f"SELECT 1 {_OVERDUE} LIMIT 1", (now,)).fetchone() is not None


def expire(db: sqlite3.Connection, now: float) -> None:
    """End the queued jobs whose deadline has passed."""
    for seq, checkpoint in db.execute(f"SELECT seq, checkpoint {_OVERDUE}", (now,)).fetchall():
        finish(db, seq, checkpoint, Outcome(JobState.EXPIRED, now))


def stats(db: sqlite3.Connection) -> QueueStats:
    """Depths, ages and ends."""
    counts = {
        (JobState(state), Priority(priority)): jobs
        for state, priority, jobs in db.execute("SELECT state, priority, jobs FROM counts WHERE jobs > 0").fetchall()
    }
    (running,) = db.execute("SELECT count(*) FROM jobs WHERE state = 'running'").fetchone()
    models = _queued_models(db)
    oldest = {}  # class -> (row number, created at)
    for priority in [priority for state, priority in counts if state is JobState.QUEUED]:
        heads = (db.execute(f"SELECT seq, created_at {_IN_TURN}", (model, priority.value, 1)) for model in models)
        oldest[priority] = min(row for cursor in heads for row in cursor.fetchall())
    return QueueStats(
        queued=sum(jobs for (state, _), jobs in counts.items() if state is JobState.QUEUED),
        running=running,
        oldest_queued_at=min(oldest.values())[1] if oldest else None,
        classes={priority: ClassStats(counts[JobState.QUEUED, priority], at) for priority, (_, at) in oldest.items()},
        ended={
            state: sum(jobs for (other, _), jobs in counts.items() if other is state)
            for state in sorted({state for state, _ in counts if state.final})
        },
    )


def prune(db: sqlite3.Connection, ended_before: float, limit: int) -> Pruned:
    """Delete the first jobs that ended before that time."""
    found = db.execute(
        "SELECT seq, results FROM jobs WHERE finished_at < ? ORDER BY finished_at LIMIT ?",
        (ended_before, max(limit, 0)),
    ).fetchall()
    free: list[str] = []
    for seq, results in found:
        db.execute("DELETE FROM jobs WHERE seq = ?", (seq,))
        for result in _RESULTS.validate_json(results):
            free += disuse(db, result.content_sha256)
    return Pruned(len(found), tuple(free))


def use(db: sqlite3.Connection, artifacts: Iterable[str]) -> None:
    """Count a job that refers to each artifact."""
    for name in artifacts:
        db.execute("INSERT INTO artifacts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET uses = uses + 1", (name,))


def disuse(db: sqlite3.Connection, artifact: str | None) -> list[str]:
    """Count one reference less; the artifact when it was the last."""
    if artifact is None:
        return []
    db.execute("UPDATE artifacts SET uses = uses - 1 WHERE name = ?", (artifact,))
    gone = db.execute("DELETE FROM artifacts WHERE name = ? AND uses <= 0", (artifact,)).rowcount
    return [artifact] if gone else []


def _queued_models(db: sqlite3.Connection) -> list[str]:
    return [model for (model,) in db.execute(_QUEUED_MODELS).fetchall()]


def _accepted_us(job_id: str) -> int:
    """When the job was accepted, microseconds since 1970, each later than the one before."""
    return int(job_id[:14], 16)
