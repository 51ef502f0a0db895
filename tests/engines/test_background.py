"""Work in a process of its own, and every way in which that can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from engines.background import NICENESS, Background, Done

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def answer(number: int) -> tuple[int, int]:
    return number + 1, os.nice(0)


def fault() -> None:
    raise ValueError("width=7 is odd")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def hoard(size: int) -> int:
    return len(bytearray(size))


def leave_something_running(pid_file: str) -> int:
    Path(pid_file).write_text(str(os.getpid()))
    threading.Thread(target=time.sleep, args=(600.0,)).start()
    return 7


def sleep(pid_file: str) -> None:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(600.0)


def finished(background: Background[T]) -> Done[T]:
    deadline = time.monotonic() + 90.0
    while (done := background.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    background.stop()
    return done


def test_what_it_returns_and_that_it_yields_to_others() -> None:
    background = Background(answer, (41,))
    assert background.poll() is None  # a process takes longer than this to start
    done = finished(background)
    assert done.value == (42, os.nice(0) + NICENESS) and not done.fault
    assert done.seconds > 0 and done.peak_bytes > 2**20
    assert background.poll() is done


@pytest.mark.parametrize(
    ("work", "fault_said"),
    [
        (fault, "ValueError: width=7 is odd"),
        (die, "its process was ended by SIGKILL"),
        (leave, "its process ended with exit code 3"),
    ],
)
def test_how_it_failed(work: Callable[[], None], fault_said: str) -> None:
    done = finished(Background(work, ()))
    assert done.value is None and done.fault == fault_said


def test_what_cannot_be_sent_is_a_fault() -> None:
    done = finished(Background(answer, (lambda: 1,)))
    assert done.value is None and done.fault.startswith("it cannot be begun: ")


def test_memory_is_bounded() -> None:
    done = finished(Background(hoard, (2**30,), memory_bytes=2**29))
    assert done.fault == "it needs more than 512 MiB of memory"
    assert finished(Background(hoard, (2**26,), memory_bytes=2**29)).value == 2**26


def test_time_is_bounded(tmp_path: Path) -> None:
    done = finished(Background(sleep, (str(tmp_path / "pid"),), limit_s=0.1))
    assert done.fault == "it took longer than 0.1 s"


def test_what_hangs_in_it_does_not_keep_it(tmp_path: Path) -> None:
    began, background = time.monotonic(), Background(leave_something_running, (str(tmp_path / "pid"),))
    assert finished(background).value == 7 and time.monotonic() - began < 300.0
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from tests.engines.test_background import Background, sleep\n"
        "if __name__ == '__main__':\n    Background(sleep, (sys.argv[1],)); time.sleep(600)"
    )
    pid_file, script = tmp_path / "pid", tmp_path / "parent.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script, pid_file], env=environment)
    wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()))
    child = int(pid_file.read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
