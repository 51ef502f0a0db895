"""Heartbeats: one that is late is seen from outside and from inside."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from service import heartbeat
from service.heartbeat import ALLOWED_S, BATCH_FACTOR, EXIT_CODE, Heartbeat, exit_when_overdue, overdue_s

PID = os.getpid()


def test_a_beat_holds_until_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    path, beats = tmp_path / "beat", Heartbeat(tmp_path / "beat")
    assert overdue_s(path, PID) == 0.0, "before the first beat"
    beats.beat()
    now[0] += ALLOWED_S
    assert overdue_s(path, PID) == 0.0
    now[0] += 1
    assert overdue_s(path, PID) == 1.0
    assert overdue_s(path, PID + 1) == 0.0, "the beat of another process"
    beats.beat(predicted_s=30.0)
    now[0] += 30.0 * BATCH_FACTOR - 1
    assert overdue_s(path, PID) == -1.0
    now[0] += 1e6
    beats.close()
    beats.close()
    assert overdue_s(path, PID) == 0.0, "who has said goodbye is not missed"


def test_beats_of_a_moment_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, path = [100.0], tmp_path / "beat"
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    beats, seen = Heartbeat(path), set()
    for _ in range(100):
        beats.beat()
        now[0] += 0.02
        seen.add(path.read_bytes())
        assert -ALLOWED_S <= overdue_s(path, PID) < -ALLOWED_S + heartbeat.WRITE_EVERY_S + 0.03
    assert len(seen) == 2
    beats.close()


def test_without_a_file_nobody_is_missed(tmp_path: Path) -> None:
    assert overdue_s(tmp_path / "none", PID) == 0.0


def test_a_worker_whose_loop_hangs_ends_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(heartbeat, "ALLOWED_S", -1.0)
    ended, codes = threading.Event(), []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    beats = Heartbeat(tmp_path / "beat")
    stopped = exit_when_overdue(tmp_path / "beat", end)
    assert not ended.wait(0.2)
    beats.beat()
    assert ended.wait(20) and codes == [EXIT_CODE]
    stopped.set()
    beats.close()
