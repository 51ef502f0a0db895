"""Artifacts in a folder of this machine, or of a file system that it shares."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


class LocalFolder:
    """A :class:`service.jobs.artifacts.Folder` on a file system, created when missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, path: str, content: bytes) -> None:
        """Write beside the final name, flush to disk, then rename. A file that is there is only marked as new."""
        final = self._folder / path
        with suppress(FileNotFoundError):
            os.utime(final)
            return
        _make_folder(final.parent, self._folder)
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(8)}")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(final.parent)

    def read(self, path: str) -> bytes:
        """The bytes there."""
        return (self._folder / path).read_bytes()

    def files(self) -> Iterator[tuple[str, int, float]]:
        """Every file, with bytes and time of the last write."""
        for folder, _, names in os.walk(self._folder):
            for name in names:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    found = os.stat(os.path.join(folder, name))
                    yield name, found.st_size, found.st_mtime

    def remove(self, path: str, written_before: float) -> bool:
        """Delete a file under another name, so that whoever marks it as new either is seen here or finds it gone."""
        final = self._folder / path
        going = final.with_name(f".{final.name}.{secrets.token_hex(8)}")
        try:
            if final.stat().st_mtime >= written_before:
                return False
            os.rename(final, going)
        except FileNotFoundError:
            return False
        if going.stat().st_mtime >= written_before:
            os.rename(going, final)
            return False
        going.unlink()
        return True

    def tidy(self, written_before: float) -> None:
        """Delete old files under names that only this class makes."""
        for path in self._folder.glob("*/.*.*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < written_before:
                    path.unlink()


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
