"""The cache under crashes, damage and company."""

from __future__ import annotations

import fcntl
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

import engines.cache
from engines.cache import EngineCache, EngineKey, kernels_of, replace_file, sha256_of_files

ROOT = Path(__file__).resolve().parents[2]
KEY = EngineKey("unet", "ab", "fp32", "onnx-20", "torch-2.13.0", "cd")
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

key = EngineKey("unet", "ab", "fp32", "onnx-20", "torch-2.13.0", "cd")
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


def test_what_is_not_there_and_whole_is_not_found(tmp_path: Path) -> None:
    cache, build = EngineCache(tmp_path), Builder()
    assert cache.find(KEY) is None and not build.builds
    entry = cache.get_or_build(KEY, build)
    os.utime(entry, (0, 0))
    assert cache.find(KEY) == entry and time.time() - entry.stat().st_mtime < 60, "that counts as a use"
    (entry / "engine").write_bytes(b"enginf")
    assert cache.find(KEY) is None


def test_what_is_discarded_is_built_again(tmp_path: Path) -> None:
    cache, build = EngineCache(tmp_path), Builder()
    cache.discard(KEY)
    entry, other = cache.get_or_build(KEY, build), cache.get_or_build(replace(KEY, weights="ac"), build)
    cache.discard(KEY)
    assert not entry.exists() and other.exists() and cache.find(KEY) is None
    assert cache.get_or_build(KEY, build) == entry and build.builds == 3


def test_other_keys_are_other_entries(tmp_path: Path) -> None:
    cache, build = EngineCache(tmp_path), Builder()
    assert cache.get_or_build(KEY, build) != cache.get_or_build(replace(KEY, weights="ac"), build)
    assert build.builds == 2


@given(st.data())
def test_any_change_in_any_field_is_another_digest(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([field.name for field in fields(EngineKey)]))
    changed = replace(KEY, **{name: data.draw(st.text())})
    assert (changed.digest == KEY.digest) == (changed == KEY)


@given(st.text(), st.text())
def test_fields_do_not_run_into_each_other(text: str, more: str) -> None:
    first, second = replace(KEY, weights=text + more, precision=""), replace(KEY, weights=text, precision=more)
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
    assert list(root.glob("*.partial"))
    EngineCache(root).prune(2**40)  # but what the dead builder left is swept away
    assert not list(root.glob("*.partial"))
    build = Builder()
    entry = EngineCache(root).get_or_build(KEY, build)  # nor is the lock held for ever
    assert build.builds == 1
    assert (entry / "engine").read_bytes() == b"engine"
    assert sorted(path.suffix for path in root.iterdir()) == ["", ".lock"]


def fill(cache: EngineCache, *names: str) -> list[Path]:
    """Entries of 1000 bytes and a little, the first one least recently used, none of them just now."""
    paths = [cache.get_or_build(replace(KEY, network=name), Builder(b"x" * 1000)) for name in names]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (time.time() - 100 - age,) * 2)
    return paths


def test_entries_are_listed_with_what_they_were_made_from(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert cache.entries() == []
    first, second = fill(cache, "unet", "decoder")
    (tmp_path / f"{'0' * 64}.partial").mkdir()
    (second / "key.json").write_text("{}")
    entries = cache.entries()
    assert [entry.path for entry in entries] == [first, second]
    assert [entry.key for entry in entries] == [KEY, None]
    assert [entry.intact for entry in entries] == [True, False]
    assert all(1000 < entry.bytes < 3000 for entry in entries)


def test_the_least_recently_used_are_evicted_until_the_rest_fits(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    a, b, c = fill(cache, "a", "b", "c")
    cache.get_or_build(replace(KEY, network="a"), Builder())  # used again
    os.utime(a, (time.time() - 99,) * 2)
    sizes = {entry.path: entry.bytes for entry in cache.entries()}
    assert cache.prune(sum(sizes.values())) == []
    assert [entry.path for entry in cache.prune(sum(sizes.values()) - 1)] == [b]
    assert not b.exists() and a.exists() and c.exists()
    assert [entry.path for entry in cache.prune(0)] == [c, a]


def test_what_was_just_used_or_is_locked_is_not_evicted(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    used, locked, other = fill(cache, "used", "locked", "other")
    cache.get_or_build(replace(KEY, network="used"), Builder())
    with (tmp_path / f"{locked.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert [entry.path for entry in cache.prune(0)] == [other]
    assert used.exists() and locked.exists()


def test_a_bounded_cache_evicts_after_it_has_built(tmp_path: Path) -> None:
    a, b = fill(EngineCache(tmp_path), "a", "b")
    bounded = EngineCache(tmp_path, max_bytes=3500)
    c = bounded.get_or_build(replace(KEY, network="c"), Builder(b"x" * 1000))
    assert not a.exists() and b.exists() and c.exists()
    again = Builder(b"x" * 1000)
    assert bounded.get_or_build(replace(KEY, network="a"), again) == a and again.builds == 1


def test_an_evicted_engine_stays_readable_for_who_has_it_open(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    (entry,) = fill(cache, "unet")
    with (entry / "engine").open("rb") as file:
        assert cache.prune(0) and not entry.exists()
        assert file.read() == b"x" * 1000


def test_what_sessions_and_builds_remember_lies_beside_the_entries(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    entry, other = fill(cache, "a", "b")
    for path in (kernels_of(entry), kernels_of(other), cache.beside("tensorrt.timing")):
        replace_file(path, b"old")
        replace_file(path, memoryview(b"new"))
        assert path.read_bytes() == b"new"
    assert all(one.intact for one in cache.entries()) and len(cache.entries()) == 2
    for one in (entry, other):
        os.utime(one, (0, 0))
    assert len(cache.prune(1)) == 2
    assert {path.name for path in (tmp_path / "engines").iterdir() if path.suffix != ".lock"} == {"tensorrt.timing"}


def test_hash_of_files_sees_content_and_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    hashes = {sha256_of_files([a, b]), sha256_of_files([b, a]), sha256_of_files([a])}
    b.write_bytes(b"3")
    assert len(hashes | {sha256_of_files([a, b])}) == 4


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads, read = tmp_path / "weights", [], engines.cache._sha256
    monkeypatch.setattr("engines.cache._sha256", lambda path: (reads.append(path), read(path))[1])
    path.write_bytes(b"1")
    first = {sha256_of_files([path]) for _ in range(2)}
    assert len(first) == 1 and len(reads) == 2  # just written: a second change could look the same
    monkeypatch.setattr("engines.cache.SETTLED_S", -1.0)
    assert {sha256_of_files([path]) for _ in range(3)} == first and len(reads) == 3
    time.sleep(0.02)  # more than the tick of a file system's clock
    path.write_bytes(b"2")
    assert sha256_of_files([path]) not in first and len(reads) == 4
    other = tmp_path / "other"
    other.write_bytes(b"1")
    other.replace(path)
    assert {sha256_of_files([path])} == first
