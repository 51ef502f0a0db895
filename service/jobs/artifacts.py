"""Finished files, named by the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.jobs.artifacts_local import LocalFolder

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Artifact:
    """A file as a listing shows it."""

    name: str
    size: int  # bytes
    stored_at: float
    """Unix seconds, by the clock of the place where it lies; putting the same bytes again counts."""


class Folder(Protocol):
    """A place for files ``ab/abcd...``. Errors are OSError; FileNotFoundError for a name that is not there."""

    def write(self, path: str, content: bytes) -> None:
        """Keep the bytes: whole and for good when this returns, or not at all."""

    def read(self, path: str) -> bytes:
        """The bytes there."""

    def files(self) -> Iterator[tuple[str, int, float]]:
        """The last part of each path with bytes and time of the last write."""

    def remove(self, path: str, written_before: float) -> bool:
        """Delete a file unless it was written again since; whether it was deleted."""

    def tidy(self, written_before: float) -> None:
        """Delete what writers left behind that were killed."""


class ArtifactStore:
    """Any number of threads and processes may share one.

    Args:
        address: a folder (created when missing), or a URL that fsspec knows, such as ``s3://bucket/prefix``.

    Raises:
        ValueError: the URL's protocol is unknown, or its driver is not installed.
    """

    def __init__(self, address: Path | str) -> None:
        self._folder = _open(address)

    def put(self, content: bytes) -> str:
        """Keep the bytes and return their SHA-256 (64 hex digits). They are whole and stored when this returns.

        Raises:
            OSError: the disk is full or does not let us write; nothing is left behind.
        """
        name = hashlib.sha256(content).hexdigest()
        self._folder.write(_path(name), content)
        return name

    def open(self, sha256: str) -> bytes:
        """The bytes of that name.

        Raises:
            KeyError: there are none, or it is not a SHA-256 in lower case hex.
        """
        if _SHA256.fullmatch(sha256) is None:
            raise KeyError(f"{sha256!r} is not a SHA-256: 64 digits of 0-9 and a-f")
        try:
            return self._folder.read(_path(sha256))
        except FileNotFoundError:
            raise KeyError(f"no artifact {sha256}") from None

    def list(self) -> Iterator[Artifact]:
        """Every artifact there is, in no order; other files are passed over."""
        for name, size, stored_at in self._folder.files():
            if _SHA256.fullmatch(name) is not None:
                yield Artifact(name, size, stored_at)

    def remove(self, sha256: str, stored_before: float) -> bool:
        """Delete an artifact unless it was put again at that time (Unix seconds) or later, for then somebody is about
        to refer to it. Whether it was deleted."""
        return self._folder.remove(_path(sha256), stored_before)

    def tidy(self, stored_before: float) -> None:
        """Delete what was begun before that time (Unix seconds) and never became an artifact."""
        self._folder.tidy(stored_before)


def _path(name: str) -> str:
    # 256 folders, which soon are all there: a new folder costs as much as a file, since it is flushed to disk, too.
    return f"{name[:2]}/{name}"


def _open(address: Path | str) -> Folder:
    if "://" not in str(address):
        return LocalFolder(Path(address))
    from service.jobs.artifacts_remote import RemoteFolder  # an extra of the installation

    return RemoteFolder(str(address))
