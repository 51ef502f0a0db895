"""How a supervisor sees that a worker hangs: before each batch the worker writes until when it will be heard of again.

The file holds the worker's process id and a time on the clock that all processes of a machine share and that only runs
forward. A worker that is stopped, or stuck in a driver, cannot say so itself; its supervisor ends it, and its jobs are
made by another.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

HEARTBEAT = "worker.beat"
"""The file's name in a worker's data folder."""
ALLOWED_S = 60.0
"""The longest silence between two turns without a batch: nothing there waits for anybody for so long."""
BATCH_FACTOR = 20.0
"""A batch may take so many times what was predicted for it, if that is more."""
CHECK_EVERY_S = 1.0
WRITE_EVERY_S = 1.0
"""A beat that moves the time by less is not written: there are some hundred a second, of small networks."""
EXIT_CODE = 70
"""Of a worker that ends itself because its loop hangs."""
_BEAT = struct.Struct("<qd")  # process id, monotonic seconds


class Heartbeat:
    """The worker's side."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._until = 0.0

    def beat(self, predicted_s: float = 0.0) -> None:
        """Alive; and what comes next is predicted to take so long."""
        until = time.monotonic() + max(ALLOWED_S, BATCH_FACTOR * predicted_s)
        if abs(until - self._until) < WRITE_EVERY_S:
            return
        self._until = until
        os.pwrite(self._file, _BEAT.pack(os.getpid(), until), 0)

    def close(self) -> None:
        """Nothing more will be heard; closing twice is fine."""
        if self._file >= 0:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = -1


def overdue_s(path: Path, pid: int) -> float:
    """Seconds since process ``pid`` should have been heard of; at most 0 while all is well or before its first beat."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0.0
    if len(content) != _BEAT.size:
        return 0.0
    process, until = _BEAT.unpack(content)
    return time.monotonic() - until if process == pid else 0.0


def exit_when_overdue(path: Path, end: Callable[[int], object] = os._exit) -> threading.Event:
    """End this process when its own loop hangs, for a worker that nobody supervises. Set the event to stop watching.

    Its leases run out, and whoever started it starts another.
    """
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(CHECK_EVERY_S):
            if overdue_s(path, os.getpid()) > 0:
                end(EXIT_CODE)
                return

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    return stopped
