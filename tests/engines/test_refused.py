"""Marks beside entries, and calls that do not come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines.cache import EngineCache, EngineKey
from engines.refused import Refusal, Watch, allow, refusal_of, refuse

ROOT = Path(__file__).resolve().parents[2]
KEY = EngineKey("unet", "ab", "fp32", "onnx-20", "torch-2.13.0", "cd")
SLOW = Refusal("slower", "it takes 1.30 of torch's time")


def test_a_mark_is_found_and_taken_away(tmp_path: Path) -> None:
    entry, other = tmp_path / "ab", tmp_path / "cd"
    assert refusal_of(entry) is None
    allow(entry)
    refuse(entry, SLOW)
    assert refusal_of(entry) == SLOW and refusal_of(other) is None
    allow(entry)
    assert refusal_of(entry) is None


def test_a_mark_outlives_an_eviction_and_is_no_entry(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    entry = cache.get_or_build(KEY, lambda folder: (folder / "network.onnx").write_bytes(b"x"))
    refuse(entry, SLOW)
    assert [one.path for one in cache.entries()] == [entry] and cache.find(KEY) == entry
    cache.discard(KEY)
    assert not cache.entries() and refusal_of(entry) == SLOW


def test_a_mark_that_cannot_be_read_or_written_is_no_engine_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "ab.refused").write_text("{")
    found = refusal_of(tmp_path / "ab")
    assert found is not None and found.state == "rejected" and found.reason.startswith("its mark cannot be read")
    refuse(tmp_path / "no such folder" / "ab", SLOW)


def test_calls_that_answer_leave_no_mark(tmp_path: Path) -> None:
    watch = Watch(limit_s=0.2)
    for _ in range(20):
        with watch.call(tmp_path / "ab"):
            time.sleep(0.02)
    with pytest.raises(RuntimeError), watch.call(tmp_path / "ab"):
        raise RuntimeError
    time.sleep(0.4)
    assert refusal_of(tmp_path / "ab") is None
    watch.stop()


HANGS = """
import sys, time
from pathlib import Path
from engines.refused import Watch
watch, entry = Watch(limit_s=0.2), Path(sys.argv[1])
with watch.call(entry.with_name("sound")):
    pass
with watch.call(entry):
    time.sleep(600.0)
"""


def test_the_mark_of_a_call_that_hangs_outlives_its_process(tmp_path: Path) -> None:
    hanging = subprocess.Popen([sys.executable, "-c", HANGS, tmp_path / "ab"], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60.0
        while refusal_of(tmp_path / "ab") is None:
            assert time.monotonic() < deadline and hanging.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(hanging.pid, signal.SIGKILL)
        hanging.wait()
    assert refusal_of(tmp_path / "ab") == Refusal("rejected", "a call of it did not come back within 0.2 s")
    assert refusal_of(tmp_path / "sound") is None
