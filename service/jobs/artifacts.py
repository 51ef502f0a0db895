"""Finished files, named by the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtifactStore:
    """A folder of files ``ab/cd/abcd...``; any number of threads and processes may share it.

    Args:
        folder: created when missing.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def put(self, content: bytes) -> str:
        """Keep the bytes and return their SHA-256 (64 hex digits). They are whole and on disk when this returns.

        Raises:
            OSError: the disk is full or does not let us write; nothing is left behind.
        """
        name = hashlib.sha256(content).hexdigest()
        path = self._path(name)
        if path.is_file():
            return name
        _make_folder(path.parent, self._folder)
        temporary = path.with_name(f".{name}.{secrets.token_hex(8)}")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)
        return name

    def open(self, sha256: str) -> bytes:
        """The bytes of that name.

        Raises:
            KeyError: there are none, or it is not a SHA-256 in lower case hex.
        """
        if _SHA256.fullmatch(sha256) is None:
            raise KeyError(f"{sha256!r} is not a SHA-256: 64 digits of 0-9 and a-f")
        try:
            return self._path(sha256).read_bytes()
        except FileNotFoundError:
            raise KeyError(f"no artifact {sha256}") from None

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name[2:4] / name


def _make_folder(folder: Path, root: Path) -> None:
    """Like ``mkdir -p``, but a new folder survives a power cut."""
    if folder == root or folder.is_dir():
        return
    _make_folder(folder.parent, root)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Write a folder's entries to disk: a new name is only durable after that."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
