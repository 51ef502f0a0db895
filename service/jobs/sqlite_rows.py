"""What the embedded store does to the rows of its file. Each function that writes runs inside a transaction."""

from __future__ import annotations

import heapq
import json
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from pydantic import TypeAdapter

from service.jobs.job import REQUEST, Job, JobError, JobState, Priority, Result, Task
from service.jobs.store import HEAD_START_S, POSITION_EXACT, ClassStats, Pruned, QueueStats, references

COLUMNS = ", ".join(Job.model_fields)
SELECT = f"SELECT {COLUMNS} FROM jobs WHERE"
_NO_LEASE = "lease_id = NULL, worker = NULL, lease_expires_at = NULL"
REQUEUE = f"UPDATE jobs SET state = 'queued', started_at = NULL, {_NO_LEASE}"
_RESULTS = TypeAdapter(tuple[Result, ...])

_QUEUES = "SELECT priority, model, jobs FROM counts WHERE state = 'queued' AND jobs > 0"
_WAITING = "FROM jobs INDEXED BY waiting WHERE state = 'queued' AND model = ? AND priority = ?"
_IN_TURN = f"{_WAITING} ORDER BY seq LIMIT ?"
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


def states(db: sqlite3.Connection, job_ids: Sequence[str]) -> dict[str, JobState]:
    """The states of those that there are."""
    sql = "SELECT id, state FROM jobs WHERE id IN (SELECT value FROM json_each(?))"
    return {job_id: JobState(state) for job_id, state in db.execute(sql, (json.dumps(list(job_ids)),)).fetchall()}


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
    heads: list[tuple[float, int]] = []
    for priority, model, _ in db.execute(_QUEUES).fetchall():
        if models is None or model in models:
            found = db.execute(f"SELECT id, seq {_IN_TURN}", (model, priority, limit))
            heads += [(_accepted_us(job_id) + _head_start_us(priority), seq) for job_id, seq in found.fetchall()]
    return [seq for _, seq in heapq.nsmallest(limit, heads)]


def position(db: sqlite3.Connection, job_id: str) -> int | None:
    """Queued jobs that are claimed before this one, or ``POSITION_EXACT``; None when it is not queued."""
    found = db.execute("SELECT priority FROM jobs WHERE id = ? AND state = 'queued'", (job_id,)).fetchone()
    if found is None:
        return None
    own_us, before = _head_start_us(found[0]), 0
    for priority, model, _ in db.execute(_QUEUES).fetchall():
        # Of two jobs with the same turn the one that was accepted first is claimed first.
        accepted_us = _accepted_us(job_id) + own_us - _head_start_us(priority) + (_head_start_us(priority) > own_us)
        last = db.execute(
            "SELECT seq FROM jobs WHERE id < ? ORDER BY id DESC LIMIT 1", (f"{max(accepted_us, 0):014x}",)
        ).fetchone()
        values = (model, priority, last[0] if last else 0, POSITION_EXACT - before)
        before += db.execute(f"SELECT count(*) FROM (SELECT 1 {_WAITING} AND seq <= ? LIMIT ?)", values).fetchone()[0]
    return before


def page(
    db: sqlite3.Connection,
    limit: int,
    after: int | None,
    state: JobState | None,
    tasks: Collection[Task] | None,
    oldest_first: bool,
) -> list[Job]:
    """Jobs in the order of their acceptance, from the row after that number on."""
    order = "ASC" if oldest_first else "DESC"
    if after is None:
        after = 0 if oldest_first else 2**63 - 1
    rule = f"seq {'>' if oldest_first else '<'} ? ORDER BY seq {order} LIMIT ?"
    if state is None and tasks is None:
        return jobs(db.execute(f"{SELECT} {rule}", (after, limit)))
    found: list[int] = []  # the next of each pair, which one index finds at any depth
    for one_state in JobState if state is None else (state,):
        for task in get_args(Task) if tasks is None else set(tasks):
            sql = f"SELECT seq FROM jobs INDEXED BY jobs_by_state WHERE state = ? AND task = ? AND {rule}"
            found += [seq for (seq,) in db.execute(sql, (one_state.value, task, after, limit)).fetchall()]
    rows = json.dumps(sorted(found, reverse=not oldest_first)[:limit])
    return jobs(db.execute(f"{SELECT} seq IN (SELECT value FROM json_each(?)) ORDER BY seq {order}", (rows,)))


def finish(db: sqlite3.Connection, seq: int, checkpoint: str | None, outcome: Outcome) -> None:
    """End a job that has not ended. ``checkpoint`` is the one it has."""
    error = None if outcome.error is None else outcome.error.model_dump_json()
    db.execute(
        "UPDATE jobs SET state = ?, results = ?, error = ?, finished_at = ?, checkpoint = NULL,"
        f" {_NO_LEASE} WHERE seq = ?",
        (outcome.state.value, _RESULTS.dump_json(outcome.results).decode(), error, outcome.at, seq),
    )
    use(db, (artifact for result in outcome.results for artifact in result.artifacts))
    disuse(db, checkpoint)


def cancel(db: sqlite3.Connection, job_id: str, now: float) -> Job | None:
    """End a job that has not ended as cancelled; the job as it is then, None for an unknown id."""
    for seq, checkpoint in held(db, "id = ? AND state IN ('queued', 'running')", job_id):
        finish(db, seq, checkpoint, Outcome(JobState.CANCELLED, now))
    return one(db, job_id)


def any_overdue(db: sqlite3.Connection, now: float) -> bool:
    """Whether :func:`expire` would end a job."""
    return db.execute(f"SELECT 1 {_OVERDUE} LIMIT 1", (now,)).fetchone() is not None


def expire(db: sqlite3.Connection, now: float) -> None:
    """End the queued jobs whose deadline has passed."""
    for seq, checkpoint in db.execute(f"SELECT seq, checkpoint {_OVERDUE}", (now,)).fetchall():
        finish(db, seq, checkpoint, Outcome(JobState.EXPIRED, now))


def stats(db: sqlite3.Connection) -> QueueStats:
    """Depths, ages and ends."""
    by_class: dict[Priority, int] = {}
    by_model: dict[str, int] = {}
    oldest: dict[Priority, tuple[int, float]] = {}  # row number, created at
    for name, model, number in db.execute(_QUEUES).fetchall():
        priority = Priority(name)
        head = db.execute(f"SELECT seq, created_at {_IN_TURN}", (model, name, 1)).fetchone()
        by_class[priority] = by_class.get(priority, 0) + number
        by_model[model] = by_model.get(model, 0) + number
        oldest[priority] = min(oldest.get(priority, head), head)
    (running,) = db.execute("SELECT count(*) FROM jobs WHERE state = 'running'").fetchone()
    ended = "SELECT state, sum(jobs) FROM counts WHERE state <> 'queued' GROUP BY state"
    return QueueStats(
        queued=sum(by_class.values()),
        running=running,
        oldest_queued_at=min(oldest.values())[1] if oldest else None,
        classes={priority: ClassStats(number, oldest[priority][1]) for priority, number in by_class.items()},
        models=by_model,
        ended={JobState(state): number for state, number in db.execute(ended).fetchall() if number},
    )


def queued(db: sqlite3.Connection) -> int:
    """Jobs that wait."""
    return int(db.execute("SELECT coalesce(sum(jobs), 0) FROM counts WHERE state = 'queued'").fetchone()[0])


def prune(db: sqlite3.Connection, ended_before: float, limit: int) -> Pruned:
    """Delete the first jobs that ended before that time."""
    old = jobs(db.execute(f"{SELECT} finished_at < ? ORDER BY finished_at LIMIT ?", (ended_before, max(limit, 0))))
    return Pruned(len(old), tuple(artifact for job in old for artifact in delete(db, job)))


def delete(db: sqlite3.Connection, job: Job) -> list[str]:
    """Forget a job that has ended; the artifacts to which nobody refers any more."""
    db.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
    return [free for artifact in references(job) for free in disuse(db, artifact)]


def use(db: sqlite3.Connection, artifacts: Iterable[str]) -> None:
    """Count a reference to each artifact."""
    for name in artifacts:
        db.execute("INSERT INTO artifacts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET uses = uses + 1", (name,))


def disuse(db: sqlite3.Connection, artifact: str | None) -> list[str]:
    """Count one reference less; the artifact when it was the last."""
    if artifact is None:
        return []
    db.execute("UPDATE artifacts SET uses = uses - 1 WHERE name = ?", (artifact,))
    gone = db.execute("DELETE FROM artifacts WHERE name = ? AND uses <= 0", (artifact,)).rowcount
    return [artifact] if gone else []


def _head_start_us(priority: str) -> int:
    return round(HEAD_START_S[Priority(priority)] * 1e6)


def _accepted_us(job_id: str) -> int:
    """When the job was accepted, microseconds since 1970, each later than the one before."""
    return int(job_id[:14], 16)
