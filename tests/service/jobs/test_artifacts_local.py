from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs.artifacts import ArtifactStore

Spawn = Callable[[str], "subprocess.Popen[str]"]
NAME = hashlib.sha256(b"picture").hexdigest()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_names_are_spread_over_folders(tmp_path: Path) -> None:
    ArtifactStore(tmp_path).put(b"picture")
    assert files(tmp_path) == [f"{NAME[:2]}/{NAME}"]


def test_putting_twice_writes_once(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.put(b"picture")
    written = (tmp_path / files(tmp_path)[0]).stat()
    store.put(b"picture")
    assert (tmp_path / files(tmp_path)[0]).stat().st_ino == written.st_ino


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = ArtifactStore(tmp_path)
    store.put(b"another")
    (tmp_path / NAME[:2]).mkdir(parents=True)
    before = files(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            store.put(b"picture")
    assert files(tmp_path) == before
    with pytest.raises(KeyError, match="no artifact"):
        store.open(NAME)
    assert store.put(b"picture") == NAME


def test_the_bytes_are_on_disk_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def watch(name: str, real: Callable[..., None]) -> None:
        def call(*arguments: object) -> None:
            calls.append(name)
            real(*arguments)

        monkeypatch.setattr(os, name, call)

    watch("fsync", os.fsync)
    watch("replace", os.replace)
    ArtifactStore(tmp_path).put(b"picture")
    assert calls == ["fsync", "fsync", "replace", "fsync"]  # a new folder, the file, its folder


@pytest.mark.parametrize("moment", ["before it is renamed", "after it was renamed"])
def test_bytes_that_are_put_while_they_are_removed_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store, rename = ArtifactStore(tmp_path), os.rename
    store.put(b"picture")
    path = tmp_path / files(tmp_path)[0]
    os.utime(path, (1000, 1000))

    def put_meanwhile(*names: Path) -> None:
        if moment == "before it is renamed":
            store.put(b"picture")
        rename(*names)
        if moment == "after it was renamed":
            store.put(b"picture")

    with monkeypatch.context() as slow:
        slow.setattr(os, "rename", put_meanwhile)
        store.remove(NAME, 2000)
    assert store.open(NAME) == b"picture"
    assert files(tmp_path) == [f"{NAME[:2]}/{NAME}"]


def test_what_a_killed_writer_left_is_tidied_up(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(f"""
import os, time
from service.jobs.artifacts import ArtifactStore
store = ArtifactStore({str(tmp_path)!r})
def hang(*_):
    print("written", flush=True)
    time.sleep(60)
os.replace = hang
store.put(b"picture")
""")
    assert child.stdout is not None and child.stdout.readline() == "written\n"
    child.kill()
    child.wait(10)
    store = ArtifactStore(tmp_path)
    (left,) = files(tmp_path)
    assert list(store.list()) == []
    with pytest.raises(KeyError):
        store.open(NAME)
    store.tidy(1000.0)
    assert files(tmp_path) == [left], "it may still be written"
    store.put(b"another")
    store.tidy((tmp_path / left).stat().st_mtime + 1)
    assert [found.name for found in store.list()] == [hashlib.sha256(b"another").hexdigest()]
    assert len(files(tmp_path)) == 1


def test_a_disk_that_is_full_is_told_and_leaves_nothing(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn(f"""
import resource
from service.jobs.artifacts import ArtifactStore
store = ArtifactStore({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for size in (90_000, 110_000):
    try:
        print(store.put(bytes(size)))
    except OSError as error:
        print(error.strerror)
""")
    assert child.stdout is not None
    fits = hashlib.sha256(bytes(90_000)).hexdigest()
    assert child.stdout.read().splitlines() == [fits, "File too large"]
    assert files(tmp_path) == [f"{fits[:2]}/{fits}"]
