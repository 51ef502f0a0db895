"""Compiled engines on disk, found by what they were made from. Imports no torch.

    <root>/<digest>/            an entry: whatever the build wrote, and
    <root>/<digest>/checksums   the size and SHA-256 of each of its files
    <root>/<digest>.partial/    a build under way, or one that was killed
    <root>/<digest>.lock        locked while it is built

An entry appears by one rename of a folder that is already on disk, so it is there whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

CHECKSUMS = "checksums"


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine's bytes depend on."""

    network: str
    """What it is in its model: ``unet``, ``decoder``."""
    weights: str
    """Hash of the network's weight files and config."""
    opset: int
    torch: str
    onnxscript: str
    onnxruntime: str
    precision: str
    shapes: str
    """The shapes it serves; ``any`` when they are free."""
    exporter: str
    """Hash of the code that defines and exports the network."""

    @property
    def digest(self) -> str:
        """The name of the entry: changes with every field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class EngineCache:
    """Entries below one folder, shared by any number of processes on one machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get_or_build(self, key: EngineKey, build: Callable[[Path], None]) -> Path:
        """The folder of ``key``'s entry, whose files are as they were built.

        Args:
            key: what the engine is made from.
            build: writes the engine's files into the empty folder that it is given. Called when there is no intact
                entry; of several processes that ask at once, one builds and the others wait. What it raises is passed
                on, and nothing is kept.
        """
        entry = self._root / key.digest
        if not _is_intact(entry):
            self._root.mkdir(parents=True, exist_ok=True)
            with _locked(self._root / f"{key.digest}.lock"):
                if not _is_intact(entry):  # it may have been built while we waited
                    self._build(entry, key, build)
        with suppress(OSError):  # a cache that comes with an image may be read-only
            os.utime(entry)  # last use, for eviction
        return entry

    def _build(self, entry: Path, key: EngineKey, build: Callable[[Path], None]) -> None:
        partial = entry.with_name(f"{entry.name}.partial")
        for stale in (partial, entry):  # of a process that was killed; damaged
            if stale.exists():
                shutil.rmtree(stale)
        partial.mkdir()
        try:
            build(partial)
            (partial / "key.json").write_text(json.dumps(asdict(key), indent=2) + "\n", encoding="utf-8")
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
    """One hash over the contents of ``paths``, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_sha256(path))
    return digest.hexdigest()


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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The lock dies with its holder, however it dies. The file stays: removing it would let a process that has just
    # opened it lock a file that nobody else can see.
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
