"""Artifacts in a folder of this machine and under a URL."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from service.jobs.artifacts import ArtifactStore

NAME = hashlib.sha256(b"picture").hexdigest()


@pytest.fixture(params=["folder", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the artifacts of this test lie."""
    if request.param == "folder":
        yield str(tmp_path / "new" / "folder")
    else:
        yield "memory://bucket/prefix"
        fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("content", [b"", b"picture", bytes(range(256)) * 4096])
def test_bytes_come_back(address: str, content: bytes) -> None:
    store = ArtifactStore(address)
    before = time.time()
    name = store.put(content)
    assert name == hashlib.sha256(content).hexdigest()
    assert store.open(name) == ArtifactStore(address).open(name) == content
    (listed,) = store.list()
    assert (listed.name, listed.size) == (name, len(content))
    assert before - 1 <= listed.stored_at <= time.time() + 1


def test_many_writers_of_the_same_bytes(address: str) -> None:
    store = ArtifactStore(address)
    contents = [bytes([index % 5]) * 100_000 for index in range(40)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(store.put, contents))
    assert [store.open(name) for name in names] == contents
    assert sorted(found.name for found in store.list()) == sorted(set(names))


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


def test_unknown_names_are_refused(address: str) -> None:
    with pytest.raises(KeyError, match="no artifact 0000"):
        ArtifactStore(address).open("0" * 64)


def test_only_what_is_old_is_removed(address: str) -> None:
    store = ArtifactStore(address)
    name = store.put(b"picture")
    kept = store.put(b"another")
    (stored_at,) = (found.stored_at for found in store.list() if found.name == name)
    assert not store.remove(name, stored_at), "put at that time or later: it stays"
    assert store.open(name) == b"picture"
    assert store.remove(name, stored_at + 1)
    assert not store.remove(name, stored_at + 1)
    assert [found.name for found in store.list()] == [kept]
    assert store.put(b"picture") == name and store.open(name) == b"picture"


def test_putting_again_makes_it_young(address: str) -> None:
    store = ArtifactStore(address)
    name = store.put(b"picture")
    (first,) = store.list()
    time.sleep(0.05)
    assert store.put(b"picture") == name
    (again,) = store.list()
    assert again.stored_at > first.stored_at
    assert not store.remove(name, again.stored_at)


@pytest.mark.parametrize("address", ["nothing://bucket"])
def test_an_unknown_protocol_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="nothing"):
        ArtifactStore(address)
