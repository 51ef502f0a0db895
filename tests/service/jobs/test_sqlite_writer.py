from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from service.errors import Unavailable
from service.jobs.sqlite_writer import AT_ONCE, Writer, WriterAtOnce


class Scene:
    """A writer on a table of numbers, and the statements that its connection ran."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, timeout=0.05, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("CREATE TABLE numbers (n INTEGER UNIQUE)")
        self.writer, self.statements = Writer(self.db), list[str]()
        self.db.set_trace_callback(self.statements.append)

    def add(self, number: int) -> None:
        self.writer.run(lambda db: db.execute("INSERT INTO numbers VALUES (?)", (number,)))

    @property
    def numbers(self) -> list[int]:
        return [n for (n,) in self.db.execute("SELECT n FROM numbers ORDER BY n").fetchall()]

    def in_one_group(self, pool: ThreadPoolExecutor, *calls: Callable[[], object]) -> list[Future[object]]:
        """Ask for all while another write is under way, so that they are one group."""
        entered, leave = threading.Event(), threading.Event()

        def slow(_: sqlite3.Connection) -> None:
            entered.set()
            leave.wait(10)

        first = pool.submit(self.writer.run, slow)
        entered.wait(10)
        futures = [pool.submit(call) for call in calls]
        while len(self.writer._waiting) < len(calls):
            pass
        leave.set()
        first.result(10)
        return futures


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "numbers.db")
    yield made
    made.writer.close()


def test_writes_that_meet_share_a_transaction(scene: Scene) -> None:
    with ThreadPoolExecutor(9) as pool:
        for future in scene.in_one_group(pool, *(lambda n=n: scene.add(n) for n in range(8))):
            future.result(10)
    assert scene.statements.count("COMMIT") == 2, "the one under way, and one for all the others"
    assert scene.numbers == list(range(8))
    scene.add(8)
    assert scene.statements.count("COMMIT") == 3


def test_one_that_raises_is_undone_and_disturbs_nobody(scene: Scene) -> None:
    def half(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO numbers VALUES (100)")
        raise ValueError("half way")

    with ThreadPoolExecutor(4) as pool:
        one, bad, two = scene.in_one_group(
            pool, lambda: scene.add(1), lambda: scene.writer.run(half), lambda: scene.add(2)
        )
        with pytest.raises(ValueError, match="half way"):
            bad.result(10)
        one.result(10)
        two.result(10)
    assert scene.numbers == [1, 2]


def test_a_transaction_that_fails_fails_for_all_and_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "numbers.db", isolation_level=None)
    with ThreadPoolExecutor(3) as pool:
        scene.add(1)
        futures = scene.in_one_group(pool, lambda: scene.add(2), lambda: scene.add(1))
        assert {type(future.exception(10)) for future in futures} == {sqlite3.IntegrityError}
    assert scene.numbers == [1]
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        scene.add(2)
    other.close()
    scene.add(2)
    assert scene.numbers == [1, 2]


def test_an_interrupt_ends_the_transaction(scene: Scene) -> None:
    def interrupt(_: sqlite3.Connection) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene.writer.run(interrupt)
    scene.add(1)
    assert scene.numbers == [1]


def test_a_value_comes_back_even_if_it_is_none(scene: Scene) -> None:
    assert scene.writer.run(lambda _: 5) == 5
    assert scene.writer.run(lambda _: None) is None


def test_writes_at_once_wait_for_nobody(scene: Scene, tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "numbers.db", isolation_level=None)
    db.execute("PRAGMA synchronous = NORMAL")
    hurried = WriterAtOnce(db)
    numbers = iter(range(1000))

    def add(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO numbers VALUES (?)", (next(numbers),))

    def wrong(_: sqlite3.Connection) -> None:
        raise ValueError("no fault of the file")

    scene.db.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(BlockingIOError, match="locked"):
        hurried.run(add)
    assert time.monotonic() - began < 0.5
    scene.db.execute("ROLLBACK")
    with pytest.raises(ValueError, match="no fault"):
        hurried.run(wrong)
    for _ in range(AT_ONCE - 2):
        hurried.run(add)
    with pytest.raises(BlockingIOError, match="disk"):
        hurried.run(add)
    hurried.run(add)
    assert len(scene.numbers) == AT_ONCE - 1
    hurried.close()


def test_a_write_that_is_flushed_is_never_at_once(scene: Scene) -> None:
    scene.db.execute("PRAGMA synchronous = FULL")
    with pytest.raises(BlockingIOError, match="disk"):
        WriterAtOnce(scene.db).run(lambda _: 1)
    scene.db.execute("PRAGMA synchronous = NORMAL")
    assert WriterAtOnce(scene.db).run(lambda _: 1) == 1
