"""The worker's status file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.status import WorkerStatus, read_status


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "worker.json"
    assert read_status(path) is None
    status = WorkerStatus(pid=os.getpid(), state="ready", models=("a", "b"))
    status.write(path)
    assert read_status(path) == status and status.alive
    assert [file.name for file in tmp_path.iterdir()] == ["worker.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"pid": 1, "state": "happy"}', b"\xff"])
def test_nonsense_is_no_status(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "worker.json").write_bytes(content)
    assert read_status(tmp_path / "worker.json") is None


def test_a_process_that_ended_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not WorkerStatus(pid=child.pid, state="ready").alive
