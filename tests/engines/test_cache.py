"""The cache under crashes, damage and company."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.cache import EngineCache, EngineKey, sha256_of_files

ROOT = Path(__file__).resolve().parents[2]
KEY = EngineKey("unet", "ab", 20, "2.13.0", "0.5", "1.32.0", "fp32", "any", "cd")
PROCESS = """
import sys, time
from pathlib import Path
from engines.cache import EngineCache, EngineKey
assert "torch" not in sys.modules
root, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def build(folder):
    (folder / "engine").write_bytes(b"ha")
    with log.open("a") as file:
        file.write("began\\n")
    time.sleep(pause)
    (folder / "engine").write_bytes(b"half no more")

key = EngineKey("unet", "ab", 20, "2.13.0", "0.5", "1.32.0", "fp32", "any", "cd")
print((EngineCache(root).get_or_build(key, build) / "engine").read_text())
"""


def start(root: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROCESS, root, log, str(pause)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


class Builder:
    """Counts how often it had to build."""

    def __init__(self, content: bytes = b"engine") -> None:
        self.content = content
        self.builds = 0

    def __call__(self, folder: Path) -> None:
        assert not list(folder.iterdir())
        self.builds += 1
        (folder / "engine").write_bytes(self.content)


def test_second_time_is_found(tmp_path: Path) -> None:
    build = Builder()
    first = EngineCache(tmp_path / "new").get_or_build(KEY, build)
    os.utime(first, (0, 0))
    assert EngineCache(tmp_path / "new").get_or_build(KEY, build) == first
    assert (first / "engine").read_bytes() == b"engine"
    assert build.builds == 1
    assert time.time() - first.stat().st_mtime < 60  # last use


def test_other_keys_are_other_entries(tmp_path: Path) -> None:
    cache, build = EngineCache(tmp_path), Builder()
    assert cache.get_or_build(KEY, build) != cache.get_or_build(replace(KEY, weights="ac"), build)
    assert build.builds == 2


@given(st.data())
def test_any_change_in_any_field_is_another_digest(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([field.name for field in fields(EngineKey)]))
    values = st.integers() if isinstance(getattr(KEY, name), int) else st.text()
    changed = replace(KEY, **{name: data.draw(values)})
    assert (changed.digest == KEY.digest) == (changed == KEY)


@given(st.text(), st.text())
def test_fields_do_not_run_into_each_other(text: str, more: str) -> None:
    first, second = replace(KEY, torch=text + more, onnxscript=""), replace(KEY, torch=text, onnxscript=more)
    assert (first.digest == second.digest) == (first == second)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "no checksums", "garbled checksums"])
def test_damage_is_found_and_built_again(tmp_path: Path, damage: str) -> None:
    cache, build = EngineCache(tmp_path), Builder(b"engine" * 1000)
    entry = cache.get_or_build(KEY, build)
    engine, checksums = entry / "engine", entry / "checksums"
    content = bytearray(engine.read_bytes())
    content[3000] ^= 1
    {
        "flip": lambda: engine.write_bytes(content),
        "truncate": lambda: os.truncate(engine, 100),
        "remove": engine.unlink,
        "add": lambda: (entry / "more").write_bytes(b""),
        "no checksums": checksums.unlink,
        "garbled checksums": lambda: checksums.write_bytes(b"\xff\xfe"),
    }[damage]()
    assert cache.get_or_build(KEY, build) == entry
    assert build.builds == 2
    assert engine.read_bytes() == build.content
    cache.get_or_build(KEY, build)
    assert build.builds == 2


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "engine").write_bytes(b"half")
        raise RuntimeError("differs by 0.5")

    cache = EngineCache(tmp_path)
    with pytest.raises(RuntimeError, match=r"differs by 0\.5"):
        cache.get_or_build(KEY, fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert (cache.get_or_build(KEY, Builder()) / "engine").read_bytes() == b"engine"


def test_two_processes_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(tmp_path / "cache", log, pause=1.0) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == ["half no more\n"] * 2
    assert log.read_text() == "began\n"


def test_killed_while_building(tmp_path: Path) -> None:
    log, root = tmp_path / "log", tmp_path / "cache"
    process = start(root, log, pause=60.0)
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (root / KEY.digest).exists()  # what is half-written has another name
    build = Builder()
    entry = EngineCache(root).get_or_build(KEY, build)  # nor is the lock held for ever
    assert build.builds == 1
    assert (entry / "engine").read_bytes() == b"engine"
    assert sorted(path.suffix for path in root.iterdir()) == ["", ".lock"]


def test_hash_of_files_sees_content_and_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    hashes = {sha256_of_files([a, b]), sha256_of_files([b, a]), sha256_of_files([a])}
    b.write_bytes(b"3")
    assert len(hashes | {sha256_of_files([a, b])}) == 4
