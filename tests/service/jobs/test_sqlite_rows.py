"""Order and names of rows, on a file of their own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.jobs import sqlite_rows as rows
from service.jobs.sqlite_file import connect


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = connect(tmp_path / "jobs.db", "NORMAL", 1.0)
    yield opened
    opened.close()


def insert(db: sqlite3.Connection, job_id: str, model: str, priority: str) -> int:
    (seq,) = db.execute(
        "INSERT INTO jobs (id, request, state, model, priority, created_at)"
        " VALUES (?, '{}', 'queued', ?, ?, 0) RETURNING seq",
        (job_id, model, priority),
    ).fetchone()
    assert isinstance(seq, int)
    return seq


def test_ids_go_up_when_the_clock_goes_back(db: sqlite3.Connection) -> None:
    first = rows.new_id(db, 1000.0)
    insert(db, first, "a", "standard")
    later = rows.new_id(db, 10.0)
    assert int(first[:14], 16) == 1000_000_000 and int(later[:14], 16) == 1000_000_001
    assert len(first) == len(later) == 32 and first[14:] != later[14:]


def test_heads_of_many_queues_are_merged_by_their_turn(db: sqlite3.Connection) -> None:
    minutes = {("a", "batch"): 0, ("b", "interactive"): 9, ("c", "standard"): 10, ("b", "standard"): 8}
    made = {
        queue: insert(db, f"{at * 60_000_000:014x}{at:018x}", *queue)
        for queue, at in sorted(minutes.items(), key=lambda item: item[1])
    }
    turn = [made[queue] for queue in (("b", "standard"), ("b", "interactive"), ("a", "batch"), ("c", "standard"))]
    assert rows.next_in_turn(db, 10, None) == turn
    assert rows.next_in_turn(db, 2, None) == turn[:2]
    assert rows.next_in_turn(db, 10, ["c", "b"]) == [turn[0], turn[1], turn[3]]
    assert rows.next_in_turn(db, 10, []) == []


def test_uses_are_counted(db: sqlite3.Connection) -> None:
    rows.use(db, ["a", "b", "a"])
    assert rows.disuse(db, "a") == [] and rows.disuse(db, None) == []
    assert rows.disuse(db, "a") == ["a"] and rows.disuse(db, "a") == []
    assert db.execute("SELECT name, uses FROM artifacts").fetchall() == [("b", 1)]
