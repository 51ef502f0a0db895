"""What can befall a server, its worker, its disk and its store. Each fault returns when it is over."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress

from tests.service.jobs.redis_server import RedisServer
from tests.support.server import ServerProcess

FULL_BYTES = 4096
"""The size to which files can grow on the full disk: no picture has room, nor has a line of the store's log."""
READY_S = 120.0


class Faults:
    """Faults of one server.

    Args:
        server: it runs.
        lasts_s: how long a fault lasts that ends; longer than a lease, so that jobs are taken back meanwhile.
        redis: the store, where it is not a file.
    """

    def __init__(self, server: ServerProcess, lasts_s: float, redis: RedisServer | None = None) -> None:
        self._server, self._lasts_s, self._redis = server, lasts_s, redis
        everywhere: dict[str, Callable[[], None]] = {
            "kill_worker": self._kill_worker,
            "kill_server": self._kill_server,
            "end_server": self._end_server,
            "stop_worker": self._stop_worker,
            "fill_disk": self._fill_disk,
        }
        of_store = {"lock_database": self._lock_database}
        if redis is not None:
            of_store = {"kill_redis": self._kill_redis, "stop_redis": self._stop_redis}
        self.kinds: Mapping[str, Callable[[], None]] = {**everywhere, **of_store}
        """Every fault by name."""

    def _worker(self) -> int:
        """The process id of a worker that is at work."""
        self._server.until(self._server.ready, READY_S)
        return self._server.worker.pid

    def _kill_worker(self) -> None:
        os.kill(self._worker(), signal.SIGKILL)

    def _kill_server(self) -> None:
        self._server.kill()
        self._server.start()

    def _end_server(self) -> None:
        self._server.terminate()
        self._server.start()

    def _stop_worker(self) -> None:
        """Longer than its leases; whoever took its jobs meanwhile keeps them."""
        pid = self._worker()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self._lasts_s)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _fill_disk(self) -> None:
        """No file of the worker can grow."""
        pid = self._worker()
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES, hard))
            time.sleep(self._lasts_s)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    def _lock_database(self) -> None:
        """Another process holds the store's write lock."""
        with closing(sqlite3.connect(self._server.data / "jobs.sqlite3", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(self._lasts_s)
            connection.execute("ROLLBACK")

    def _kill_redis(self) -> None:
        """What it had acknowledged is in its log."""
        assert self._redis is not None
        self._redis.kill()
        time.sleep(self._lasts_s)
        self._redis.start()

    def _stop_redis(self) -> None:
        """It takes connections and answers nothing."""
        assert self._redis is not None
        self._redis.process.send_signal(signal.SIGSTOP)
        time.sleep(self._lasts_s)
        self._redis.process.send_signal(signal.SIGCONT)
