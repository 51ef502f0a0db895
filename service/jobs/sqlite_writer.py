"""Group commit: the writes of all threads of a process, in few transactions; and writes that wait for nothing."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from service.errors import Unavailable

T = TypeVar("T")

AT_ONCE = 50
"""Writes in a row that do not wait. The next one does, and with it the log is written back into the file when it has
become long, which takes two flushes of the disk."""
MAX_GROUP = 256
"""Writes of one transaction: other processes wait for the whole of it."""

_SYNCHRONOUS_FULL = 2
_OUT_OF_REACH = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def result_code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for any other error."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def public(error: BaseException) -> BaseException:
    """What a caller of the store is told: a full or failing disk and a lock that is not given up are
    :class:`Unavailable`."""
    if result_code(error) in _OUT_OF_REACH:
        return Unavailable(f"the job store cannot be used now: {error}")
    return error


class _Write(Generic[T]):
    """One thread's write, from the moment it is asked for until its transaction is over."""

    def __init__(self, operation: Callable[[sqlite3.Connection], T]) -> None:
        self.operation = operation
        self.done = False
        self.value: T | None = None
        self.error: BaseException | None = None


class Writer:
    """Runs writes on one connection, one thread at a time.

    There is no thread of its own. Whoever gets the lock runs everything that has been asked for by then in one
    transaction, and the others find their results when their turn comes. A lone caller, which a worker is, pays for no
    change of threads, and while a disk flush lasts the next group gathers.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._waiting: deque[_Write[Any]] = deque()

    def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """The result of ``operation``, durable when this returns.

        If it raises, nothing of it is kept, and others of its group are not disturbed; if the transaction fails, the
        whole group fails.

        Raises:
            Unavailable: the file stayed locked, or the disk is full.
        """
        write = _Write(operation)
        self._waiting.append(write)
        with self._lock:
            while not write.done:
                self._commit_group()
        if write.error is not None:
            error = public(write.error)
            raise error from (None if error is write.error else write.error)
        return write.value  # type: ignore[return-value]  # T may itself be Optional

    def close(self) -> None:
        """Close the connection, after the write that is under way."""
        with self._lock:
            self._db.close()

    def _commit_group(self) -> None:
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP))]
        try:
            # The lock from the start: a transaction that reads first can fail for lack of it half way.
            self._db.execute("BEGIN IMMEDIATE")
            if len(group) == 1:
                group[0].value = group[0].operation(self._db)
            else:
                for write in group:
                    self._attempt(write)
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db_in_transaction():
                self._db.execute("ROLLBACK")
            told = error if isinstance(error, Exception) else Unavailable("the write was interrupted")
            for write in group:
                write.error = write.error or told
            if told is not error:
                raise
        finally:
            for write in group:
                write.done = True

    def _attempt(self, write: _Write[Any]) -> None:
        """Run one write of the group; what only concerns this one is kept for its caller."""
        self._db.execute("SAVEPOINT one")
        try:
            write.value = write.operation(self._db)
        except sqlite3.Error:
            raise
        except Exception as error:
            write.error = error
            self._db.execute("ROLLBACK TO one")
        self._db.execute("RELEASE one")

    def _db_in_transaction(self) -> bool:
        try:
            return self._db.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return False


class WriterAtOnce:
    """Runs writes that wait neither for other writers nor for the disk, so that an event loop may.

    A commit to the log is a copy into the system's memory, unless each has to be flushed.

    Args:
        db: in write-ahead mode, and used for nothing else.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA busy_timeout = 0")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        (synchronous,) = db.execute("PRAGMA synchronous").fetchone()
        self._flushes = synchronous >= _SYNCHRONOUS_FULL
        self._writer = Writer(db)
        self._left = AT_ONCE

    def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """The result of ``operation``, as by :meth:`Writer.run`.

        Raises:
            BlockingIOError: it would have to wait. Nothing of it is kept.
        """
        if self._flushes or self._left == 0:
            self._left = AT_ONCE
            raise BlockingIOError("this write would wait for the disk")
        self._left -= 1
        try:
            return self._writer.run(operation)
        except Unavailable as error:
            raise BlockingIOError(error.message) from error

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()
