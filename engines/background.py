"""Work in a process of its own, with bounded memory and time: exports and builds beside a server that goes on.

The process yields to everything else, dies with its parent, and tells how it ended however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

T = TypeVar("T")
NICENESS = 10
END_S = 1.0
"""For a process to end by itself after it has told its result: an engine that hangs in it would keep it for ever."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """How the work ended."""

    value: T | None
    """What it returned; None when it failed."""
    fault: str
    """Why it failed; empty when it did not."""
    seconds: float
    peak_bytes: int
    """The most memory that it held; 0 where the process died."""


class Background(Generic[T]):
    """One call in a process of its own."""

    def __init__(
        self, work: Callable[..., T], arguments: tuple[object, ...], memory_bytes: int = 0, limit_s: float = 0.0
    ) -> None:
        """Start it.

        Args:
            work: a function of a module.
            arguments: picklable; no tensors, which would be shared and not sent.
            memory_bytes: more than this cannot be allocated; 0: no limit.
            limit_s: the process is killed after this time; 0: never.
        """
        context = multiprocessing.get_context("spawn")  # a fork would take the locks of running threads along
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(sender, work, arguments, memory_bytes), daemon=True)
        self._limit_s, self._began = limit_s, time.monotonic()
        self._done: Done[T] | None = None
        # The arguments go through a pipe that the new process reads when it has imported what it needs.
        self._starter = threading.Thread(target=self._start, args=(sender,), daemon=True, name="start of a build")
        self._starter.start()

    def poll(self) -> Done[T] | None:
        """How it ended, or None while it runs. Never waits."""
        if self._done is None and not self._starter.is_alive():
            self._done = self._look()
        return self._done

    def stop(self) -> None:
        """Kill it, if it still runs."""
        self._starter.join()
        if self._process.pid is None:  # it never began
            return
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _start(self, sender: Connection) -> None:
        try:
            self._process.start()
        except Exception as error:
            self._done = Done(None, f"it cannot be begun: {type(error).__name__}: {error}", 0.0, 0)
        finally:
            sender.close()  # else the end of the process would not be seen here

    def _look(self) -> Done[T] | None:
        seconds = time.monotonic() - self._began
        if self._receiver.poll():
            try:
                value, fault, peak = self._receiver.recv()
            except EOFError:
                self._process.join()
                return Done(None, _death(self._process.exitcode), seconds, 0)
            self._process.join(END_S)
            self.stop()
            return Done(value, fault, seconds, peak)
        if self._limit_s and seconds > self._limit_s:
            self.stop()
            return Done(None, f"it took longer than {self._limit_s:g} s", seconds, 0)
        return None


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def _run(sender: Connection, work: Callable[..., object], arguments: tuple[object, ...], memory_bytes: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICENESS)
    if memory_bytes:
        # Of private memory: the address space alone says nothing, libraries reserve far more than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    value, fault = None, ""
    try:
        value = work(*arguments)
    except MemoryError:
        fault = f"it needs more than {memory_bytes / 2**20:.0f} MiB of memory"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    sender.send((value, fault, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
