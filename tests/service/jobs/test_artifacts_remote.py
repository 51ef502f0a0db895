from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from service.jobs.artifacts import ArtifactStore


@pytest.fixture
def memory() -> Iterator[dict[str, object]]:
    """Everything under ``memory://``, by path."""
    files = fsspec.filesystem("memory").store
    yield files
    files.clear()


def test_files_lie_under_the_prefix(memory: dict[str, object]) -> None:
    for address in ("memory://bucket/prefix", "memory://bucket/prefix/"):
        name = ArtifactStore(address).put(b"picture")
        assert list(memory) == [f"/bucket/prefix/{name[:2]}/{name}"]


def test_bytes_that_were_cut_off_are_missing_until_they_are_put_again(memory: dict[str, object]) -> None:
    store = ArtifactStore("memory://bucket")
    name = store.put(b"picture")
    fsspec.filesystem("memory").pipe_file(next(iter(memory)), b"pict")
    with pytest.raises(KeyError, match="no artifact"):
        store.open(name)
    store.put(b"picture")
    assert store.open(name) == b"picture"


def test_other_files_are_passed_over(memory: dict[str, object]) -> None:
    store = ArtifactStore("memory://bucket")
    fsspec.filesystem("memory").pipe_file("/bucket/notes.txt", b"notes")
    assert list(store.list()) == []
    store.tidy(1e12)
    assert list(memory) == ["/bucket/notes.txt"]


def test_a_file_url_is_a_folder_by_another_driver(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/new")
    name = store.put(b"picture")
    path = tmp_path / "new" / name[:2] / name
    assert path.read_bytes() == b"picture"
    os.utime(path, (1000, 1000))
    (listed,) = store.list()
    assert listed.stored_at == 1000.0
    assert store.remove(name, 2000.0) and not path.exists()
