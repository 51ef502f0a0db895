from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.jobs.artifacts import ArtifactStore


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("content", [b"", b"picture", bytes(range(256)) * 4096])
def test_bytes_come_back(tmp_path: Path, content: bytes) -> None:
    store = ArtifactStore(tmp_path / "new" / "folder")
    name = store.put(content)
    assert name == hashlib.sha256(content).hexdigest()
    assert store.open(name) == ArtifactStore(tmp_path / "new" / "folder").open(name) == content
    assert files(tmp_path / "new" / "folder") == [f"{name[:2]}/{name[2:4]}/{name}"]


def test_putting_twice_writes_once(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    name = store.put(b"picture")
    written = (tmp_path / files(tmp_path)[0]).stat()
    assert store.put(b"picture") == name
    again = (tmp_path / files(tmp_path)[0]).stat()
    assert (written.st_ino, written.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_many_writers_of_the_same_bytes(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    contents = [bytes([index % 5]) * 100_000 for index in range(40)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(store.put, contents))
    assert [store.open(name) for name in names] == contents
    assert len(files(tmp_path)) == 5


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = ArtifactStore(tmp_path)
    store.put(b"another")
    name = hashlib.sha256(b"picture").hexdigest()
    (tmp_path / name[:2] / name[2:4]).mkdir(parents=True)
    before = files(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            store.put(b"picture")
    assert files(tmp_path) == before
    with pytest.raises(KeyError, match="no artifact"):
        store.open(name)
    assert store.put(b"picture") == name


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
    assert calls == ["fsync", "fsync", "fsync", "replace", "fsync"]  # two new folders, the file, its folder


NAME = hashlib.sha256(b"picture").hexdigest()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../secret", "/etc/passwd", "0" * 63, "0" * 65, NAME.upper(), NAME + "\n", "../" + NAME, "é"],
)
def test_malformed_names_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    store = ArtifactStore(tmp_path / "artifacts")
    store.put(b"picture")
    with pytest.raises(KeyError, match="is not a SHA-256"):
        store.open(name)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no artifact 0000"):
        ArtifactStore(tmp_path).open("0" * 64)
