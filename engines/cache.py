"""Compiled engines on disk, found by what they were made from. Imports no torch.

    <root>/<digest>/            an entry: whatever the build wrote, and
    <root>/<digest>/key.json    what it was made from
    <root>/<digest>/checksums   the size and SHA-256 of each of its files
    <root>/<digest>.partial/    a build under way, or one that was killed
    <root>/<digest>.lock        locked while it is built or removed
    <root>/<digest>.kernels     what a session of it compiled when it was loaded
    <root>/<digest>.refused     why it is not to be taken, where it is not (engines/refused.py)
    <root>/*.timing             what builds measured

An entry appears by one rename of a folder that is already on disk, so it is there whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

CHECKSUMS, KEY = "checksums", "key.json"
GRACE_S = 60.0
"""An entry that was asked for within this time is not evicted: its session may be opening it."""
SETTLED_S = 2.0
"""A file that was changed within this time may be changed again without showing it: file systems' clocks are coarse."""


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine's bytes depend on."""

    network: str
    """What it is in its model: ``unet``, ``vae/decoder``."""
    weights: str
    """Hash of the network's weight files and config."""
    precision: str
    format: str
    """What the entry holds: ``onnx-20``; of a plan the flavour and its flags too."""
    libraries: str
    """Names and versions of all libraries that made it."""
    code: str
    """Hash of the code that defines and exports the network."""
    adapters: str = ""
    """Hash of the adapter set that is fused into the weights."""
    shapes: str = "any"
    """The shapes it serves; ``any`` when they are free."""
    architecture: str = "any"
    """The processors it runs on."""

    @property
    def digest(self) -> str:
        """The name of the entry: changes with every field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One entry as it lies in the cache."""

    path: Path
    key: EngineKey | None
    """None: the entry is of another version of this program, or damaged."""
    bytes: int
    used_at: float
    """When it was last asked for, in seconds of the Unix epoch."""

    @property
    def intact(self) -> bool:
        """Whether every file is as it was built; reads all of them."""
        return _is_intact(self.path)


class EngineCache:
    """Entries below one folder, shared by any number of processes on one machine."""

    def __init__(self, root: Path, max_bytes: int = 0) -> None:
        """
        Args:
            root: made when the first entry is.
            max_bytes: after a build, the entries least recently used are evicted until no more is left; 0: no limit.
        """
        self._root = root
        self._max_bytes = max_bytes

    def get_or_build(self, key: EngineKey, build: Callable[[Path], object]) -> Path:
        """The folder of ``key``'s entry, whose files are as they were built.

        Args:
            key: what the engine is made from.
            build: writes the engine's files into the empty folder that it is given. Called when there is no intact
                entry; of several processes that ask at once, one builds and the others wait. What it raises is passed
                on, and nothing is kept.
        """
        entry = self._root / key.digest
        _touch(entry)  # before it is looked at: nobody evicts it from now on
        if not _is_intact(entry):
            self._root.mkdir(parents=True, exist_ok=True)
            with _locked(_lock_of(entry)):
                if not _is_intact(entry):  # it may have been built while we waited
                    self._build(entry, key, build)
            if self._max_bytes:
                self.prune(self._max_bytes)
        return entry

    def find(self, key: EngineKey) -> Path | None:
        """The folder of ``key``'s entry, as :meth:`get_or_build` returns it; None where it is not there and whole."""
        entry = self._root / key.digest
        _touch(entry)
        return entry if _is_intact(entry) else None

    def beside(self, name: str) -> Path:
        """A file of the cache's folder that is no engine and may be lost: what a library remembers of its builds."""
        return self._root / name

    def discard(self, key: EngineKey) -> None:
        """Remove ``key``'s entry, unless somebody builds it just now: it does not do what it was built for."""
        entry = self._root / key.digest
        if entry.exists():
            _remove(entry)

    def entries(self) -> list[Entry]:
        """Every entry, the one least recently used first. Reads no engine."""
        found = []
        for path in self._root.glob("*/"):
            if path.suffix != ".partial":
                with suppress(FileNotFoundError):  # evicted meanwhile
                    size = sum(file.stat().st_size for file in path.iterdir())
                    found.append(Entry(path, _key_of(path), size, path.stat().st_mtime))
        return sorted(found, key=lambda entry: (entry.used_at, entry.path))

    def prune(self, max_bytes: int) -> list[Entry]:
        """Evict the entries least recently used until at most ``max_bytes`` are left, and what killed builds left.

        Entries that were asked for a minute ago or later stay, and so does what is just being built or is locked
        otherwise. Sessions that have opened an entry keep it: its files go when they close.

        Returns:
            The entries that are gone.
        """
        for partial in self._root.glob("*.partial/"):
            _remove(partial)
        entries, gone = self.entries(), []
        size = sum(entry.bytes for entry in entries)
        for entry in entries:
            if size <= max_bytes:
                break
            if entry.used_at + GRACE_S < time.time() and _remove(entry.path):
                gone.append(entry)
                size -= entry.bytes
        return gone

    def _build(self, entry: Path, key: EngineKey, build: Callable[[Path], object]) -> None:
        partial = entry.with_name(f"{entry.name}.partial")
        for stale in (partial, entry):  # of a process that was killed; damaged
            if stale.exists():
                shutil.rmtree(stale)
        partial.mkdir()
        try:
            build(partial)
            (partial / KEY).write_text(json.dumps(asdict(key), indent=2) + "\n", encoding="utf-8")
            sums = "".join(f"{line}\n" for line in _checksums(partial))
            (partial / CHECKSUMS).write_text(sums, encoding="utf-8")
            for path in (*partial.iterdir(), partial):
                _sync(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.replace(entry)
        _sync(self._root)


def sha256_of_files(paths: list[Path]) -> str:
    """One hash over the contents of ``paths``, in this order. A process reads a file that does not change once."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_remembered_sha256(path))
    return digest.hexdigest()


def kernels_of(entry: Path) -> Path:
    """Where a session of an entry keeps what it compiles. Not among the entry's files, which never change."""
    return entry.with_name(f"{entry.name}.kernels")


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file that others may be reading."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _remembered_sha256(path: Path) -> bytes:
    state = path.stat()
    if time.time() - state.st_ctime < SETTLED_S:
        return _sha256(path)
    return _sha256_in_state(path, state.st_ino, state.st_size, state.st_ctime_ns)


@lru_cache(maxsize=4096)
def _sha256_in_state(path: Path, *_state: int) -> bytes:
    return _sha256(path)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _checksums(folder: Path) -> list[str]:
    """One line a file: hash, size, name."""
    paths = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    return [f"{_sha256(path).hex()} {path.stat().st_size} {path.name}" for path in paths]


def _is_intact(entry: Path) -> bool:
    try:
        expected = (entry / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        return bool(expected) and _checksums(entry) == expected
    except (OSError, UnicodeDecodeError):
        return False


def _key_of(entry: Path) -> EngineKey | None:
    try:
        return EngineKey(**json.loads((entry / KEY).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name.removesuffix('.partial')}.lock")


def _touch(entry: Path) -> None:
    with suppress(OSError):  # not there; or a cache that comes with an image and is read-only
        os.utime(entry)


def _remove(path: Path) -> bool:
    """Remove an entry or what is left of a build, unless somebody holds its lock."""
    with suppress(BlockingIOError), _locked(_lock_of(path), wait=False):
        shutil.rmtree(path, ignore_errors=True)
        kernels_of(path).unlink(missing_ok=True)
        return True
    return False


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    # The lock dies with its holder, however it dies. The file stays: removing it would let a process that has just
    # opened it lock a file that nobody else can see.
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
