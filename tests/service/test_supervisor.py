"""Real children: killed and replaced, ended in order, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from service import supervisor
from service.status import WorkerStatus
from service.supervisor import Backoff, supervise

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
OBEDIENT = "from service.supervisor import exit_with_parent; exit_with_parent(); import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
QUICK = Backoff(first_s=0.01, limit_s=0.04)


@dataclass
class Seen:
    """What the callbacks were told."""

    started: list[int] = field(default_factory=list)
    exited: list[int] = field(default_factory=list)

    async def on_exit(self, pid: int) -> None:
        self.exited.append(pid)
        if len(self.exited) == 1:
            raise OSError("bookkeeping may fail")

    def task(self, code: str, backoff: Backoff = QUICK, **how: Any) -> asyncio.Task[None]:
        command = [sys.executable, "-c", code]
        return asyncio.create_task(
            supervise(command, os.environ, self.started.append, self.on_exit, backoff=backoff, **how)
        )


async def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    return WorkerStatus(pid=pid, state="ready").alive


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_killed_child_is_replaced() -> None:
    seen = Seen()
    task = seen.task(SLEEPER)
    for count in (1, 2, 3):
        await until(lambda count=count: len(seen.started) == count)  # type: ignore[misc]
        os.kill(seen.started[-1], signal.SIGKILL)
        await until(lambda count=count: len(seen.exited) == count)  # type: ignore[misc]
    await until(lambda: len(seen.started) == 4)
    await end(task)
    assert seen.exited == seen.started and not any(map(alive, seen.started))


async def test_pauses_grow() -> None:
    seen = Seen()
    task = seen.task("raise SystemExit(1)", Backoff(first_s=0.5, limit_s=60))
    await until(lambda: len(seen.started) == 2)
    began = time.monotonic()
    await until(lambda: len(seen.started) == 3)
    assert time.monotonic() - began > 1.0
    await end(task)


async def test_a_stubborn_child_is_killed() -> None:
    seen = Seen()
    task = seen.task(STUBBORN, grace_s=0.3)
    await until(lambda: len(seen.started) == 1)
    await asyncio.sleep(0.5)
    await end(task)
    assert not alive(seen.started[0]) and seen.exited == seen.started


async def test_a_child_that_is_stopped_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HANG_CHECK_S", 0.05)
    seen, silent = Seen(), set[int]()
    task = seen.task(SLEEPER, hangs=silent.__contains__)
    await until(lambda: len(seen.started) == 1)
    await asyncio.sleep(0.3)
    assert not seen.exited, "it was not silent"
    os.kill(seen.started[0], signal.SIGSTOP)  # no signal but SIGKILL reaches it now
    silent.add(seen.started[0])
    await until(lambda: len(seen.started) == 2)
    assert seen.exited == seen.started[:1] and not alive(seen.started[0]) and alive(seen.started[1])
    await end(task)


async def test_a_command_that_is_not_there() -> None:
    seen = Seen()
    task = asyncio.create_task(supervise(["/no/such/file"], {}, seen.started.append, seen.on_exit, backoff=QUICK))
    await asyncio.sleep(0.2)
    assert not task.done() and not seen.started
    await end(task)


def test_a_child_does_not_outlive_its_parent() -> None:
    parent_code = (
        "import asyncio, os, sys\n"
        "from service.supervisor import supervise\n"
        "async def on_exit(pid): pass\n"
        "show = lambda pid: print(pid, flush=True)\n"
        f"asyncio.run(supervise([sys.executable, '-c', {OBEDIENT!r}], os.environ, show, on_exit))\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        assert alive(child)
        parent.kill()
        parent.stdout.close()
    limit = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < limit, "the child is an orphan"
        time.sleep(0.02)
